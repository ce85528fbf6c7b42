//! A hub on this machine, with the addresses, headers and redirects of the real one, that can be told to misbehave.

#![allow(dead_code, reason = "two programs of tests use a part of it each")]

use std::collections::{BTreeMap, VecDeque};
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

use sha1::Sha1;
use sha2::{Digest, Sha256};

/// The only commit of every repository.
pub(crate) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// What happens to the next request for the content of a file, instead of the right thing.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Fault {
    /// The connection ends after so many bytes of the body.
    BreakAfter(usize),
    /// One byte is another.
    Corrupt,
    /// The whole file comes, whatever was asked for.
    IgnoreRange,
    /// Nothing comes but this status, with this `X-Error-Code`.
    Status(u16, &'static str),
}

/// What was asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Request {
    pub(crate) method: String,
    pub(crate) path: String,
    /// Whether it went to the store behind the hub.
    pub(crate) store: bool,
    pub(crate) token: Option<String>,
    pub(crate) range: Option<String>,
}

pub(crate) struct Server {
    /// For `HF_ENDPOINT`.
    pub(crate) endpoint: String,
    state: Arc<State>,
}

struct State {
    store: String,
    /// Content by path, such as `models/OWNER/NAME/config.json`.
    files: BTreeMap<String, Vec<u8>>,
    token: Option<&'static str>,
    faults: Mutex<VecDeque<Fault>>,
    requests: Mutex<Vec<Request>>,
}

impl Server {
    /// With these files, for everybody or for those who have the token.
    pub(crate) fn start(files: &[(&str, Vec<u8>)], token: Option<&'static str>) -> Self {
        let listen = || TcpListener::bind("127.0.0.1:0").expect("a free port");
        let (hub, store) = (listen(), listen());
        let address = |listener: &TcpListener| format!("http://{}", listener.local_addr().expect("bound"));
        let state = Arc::new(State {
            store: address(&store),
            files: files.iter().map(|(path, content)| (String::from(*path), content.clone())).collect(),
            token,
            faults: Mutex::default(),
            requests: Mutex::default(),
        });
        let endpoint = address(&hub);
        for (listener, is_store) in [(hub, false), (store, true)] {
            let state = Arc::clone(&state);
            thread::spawn(move || {
                for connection in listener.incoming().flatten() {
                    let state = Arc::clone(&state);
                    thread::spawn(move || state.answer(connection, is_store));
                }
            });
        }
        Self { endpoint, state }
    }

    pub(crate) fn fault(&self, fault: Fault) {
        self.state.faults.lock().expect("no panic").push_back(fault);
    }

    /// What was asked since the last call.
    pub(crate) fn requests(&self) -> Vec<Request> {
        std::mem::take(&mut *self.state.requests.lock().expect("no panic"))
    }
}

/// Whether the hub keeps such a file in its store for large ones.
fn is_large(path: &str) -> bool {
    [".safetensors", ".bin", ".model", ".parquet"].iter().any(|ending| path.ends_with(ending))
}

/// The name that the hub gives a file's content.
pub(crate) fn tag(path: &str, content: &[u8]) -> String {
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    if is_large(path) {
        hex(&Sha256::digest(content))
    } else {
        hex(&Sha1::new().chain_update(format!("blob {}\0", content.len())).chain_update(content).finalize())
    }
}

impl State {
    fn answer(&self, mut connection: TcpStream, is_store: bool) -> Option<()> {
        let mut lines = BufReader::new(connection.try_clone().ok()?).lines();
        let first = lines.next()?.ok()?;
        let mut words = first.split(' ').map(String::from);
        let (method, path) = (words.next()?, words.next()?);
        let mut headers = BTreeMap::new();
        for line in lines.map_while(Result::ok).take_while(|line| !line.is_empty()) {
            let (name, value) = line.split_once(": ")?;
            headers.insert(name.to_lowercase(), value.to_owned());
        }
        let range = headers.remove("range");
        let token = headers.remove("authorization").map(|token| token.replace("Bearer ", ""));
        self.requests.lock().ok()?.push(Request {
            method: method.clone(),
            path: path.clone(),
            store: is_store,
            token: token.clone(),
            range: range.clone(),
        });
        let answer = if is_store {
            self.body(&path, &path[1..], range.as_deref())
        } else if self.token.is_some() && token.as_deref() != self.token {
            Answer::status(401, "RepoNotFound")
        } else {
            self.route(&path, range.as_deref())
        };
        answer.write(&mut connection, method == "HEAD")
    }

    fn route(&self, path: &str, range: Option<&str>) -> Answer {
        if let Some(rest) = path.strip_prefix("/api/resolve-cache/") {
            return self.body(path, rest, range);
        }
        if let Some((repository, revision)) =
            path.strip_prefix("/api/").and_then(|it| it.split_once("/revision/"))
        {
            return self.info(repository, revision);
        }
        let Some((repository, rest)) = path[1..].split_once("/resolve/") else {
            return Answer::status(404, "");
        };
        let repository = if repository.starts_with("datasets/") {
            repository.into()
        } else {
            format!("models/{repository}")
        };
        let Some((revision, file)) = rest.split_once('/') else { return Answer::status(404, "") };
        let key = format!("{repository}/{file}");
        match self.files.get(&key) {
            _ if !self.has(&repository) => {
                Answer::status(if self.token.is_some() { 404 } else { 401 }, "RepoNotFound")
            }
            _ if ![COMMIT, "main"].contains(&revision) => Answer::status(404, "RevisionNotFound"),
            None => Answer::status(404, "EntryNotFound"),
            Some(content) if is_large(file) => Answer {
                status: 302,
                headers: vec![
                    ("Location", format!("{}/{key}", self.store)),
                    ("X-Repo-Commit", COMMIT.into()),
                    ("X-Linked-ETag", format!("\"{}\"", tag(file, content))),
                    ("X-Linked-Size", content.len().to_string()),
                    ("ETag", "\"of the redirect\"".into()),
                ],
                body: b"Found".to_vec(),
                sent: None,
            },
            Some(_) => Answer {
                status: 307,
                headers: vec![("Location", format!("/api/resolve-cache/{key}"))],
                body: Vec::new(),
                sent: None,
            },
        }
    }

    fn has(&self, repository: &str) -> bool {
        self.files.keys().any(|path| path.starts_with(&format!("{repository}/")))
    }

    fn info(&self, repository: &str, revision: &str) -> Answer {
        if !self.has(repository) {
            return Answer::status(401, "RepoNotFound");
        }
        if ![COMMIT, "main"].contains(&revision) {
            return Answer::status(404, "RevisionNotFound");
        }
        let inside = self.files.keys().filter_map(|path| path.strip_prefix(&format!("{repository}/")));
        let siblings: Vec<_> = inside.map(|file| format!(r#"{{"rfilename": "{file}"}}"#)).collect();
        let body = format!(r#"{{"id": "x", "sha": "{COMMIT}", "siblings": [{}]}}"#, siblings.join(", "));
        Answer { status: 200, headers: vec![], body: body.into_bytes(), sent: None }
    }

    /// The content of a file, or of a part of it.
    fn body(&self, path: &str, key: &str, range: Option<&str>) -> Answer {
        let Some(content) = self.files.get(key) else { return Answer::status(404, "EntryNotFound") };
        // Of the small ones a `HEAD` comes here as well.
        let fault = if is_large(path) { self.faults.lock().expect("no panic").pop_front() } else { None };
        let start =
            range.and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse::<usize>().ok());
        let mut headers =
            vec![("ETag", format!("\"{}\"", tag(key, content))), ("X-Repo-Commit", COMMIT.into())];
        let mut body = content.clone();
        let mut status = 200;
        match (start, fault) {
            (_, Some(Fault::Status(status, code))) => return Answer::status(status, code),
            (None, _) | (_, Some(Fault::IgnoreRange)) => {}
            (Some(start), _) if start >= body.len() => return Answer::status(416, ""),
            (Some(start), _) => {
                status = 206;
                headers.push(("Content-Range", format!("bytes {start}-{}/{}", body.len() - 1, body.len())));
                body.drain(..start);
            }
        }
        if let Some(Fault::Corrupt) = fault {
            let middle = body.len() / 2;
            body[middle] ^= 1;
        }
        let sent = if let Some(Fault::BreakAfter(bytes)) = fault { Some(bytes) } else { None };
        Answer { status, headers, body, sent }
    }
}

struct Answer {
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
    /// Bytes of the body after which the connection ends.
    sent: Option<usize>,
}

impl Answer {
    fn status(status: u16, code: &str) -> Self {
        Self { status, headers: vec![("X-Error-Code", code.into())], body: Vec::new(), sent: None }
    }

    fn write(self, connection: &mut TcpStream, head: bool) -> Option<()> {
        let mut text = format!(
            "HTTP/1.1 {} -\r\nConnection: close\r\nContent-Length: {}\r\n",
            self.status,
            self.body.len()
        );
        for (name, value) in &self.headers {
            text += &format!("{name}: {value}\r\n");
        }
        connection.write_all((text + "\r\n").as_bytes()).ok()?;
        if !head {
            connection
                .write_all(&self.body[..self.sent.unwrap_or(self.body.len()).min(self.body.len())])
                .ok()?;
        }
        connection.flush().ok()
    }
}
