//! Downloads from a hub on this machine, which can be told to misbehave.

mod hub_server;

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::thread;

use adalora_tasks::{Catalogue, Fetched, Hub, TaskError};
use hub_server::{COMMIT, Fault, Request, Server, tag};
use tempfile::TempDir;

const ID: &str = "somebody/tiny";

fn weights() -> Vec<u8> {
    (0..200_000_u32).map(|index| (index.wrapping_mul(2_654_435_761) >> 13) as u8).collect()
}

fn files() -> Vec<(&'static str, Vec<u8>)> {
    vec![
        ("models/somebody/tiny/config.json", b"{\"model_type\": \"deberta-v2\"}".to_vec()),
        ("models/somebody/tiny/pytorch_model.bin", weights()),
        ("models/somebody/tiny/spm.model", b"pieces".to_vec()),
        ("models/somebody/tiny/README.md", b"# Tiny".to_vec()),
        ("models/somebody/both/config.json", b"{}".to_vec()),
        ("models/somebody/both/model.safetensors", b"safe".to_vec()),
        ("models/somebody/both/pytorch_model.bin", b"pickled".to_vec()),
        ("models/somebody/both/spm.model", b"pieces".to_vec()),
        ("models/somebody/both/tokenizer.json", b"{}".to_vec()),
        ("models/somebody/both/tokenizer_config.json", b"{ }".to_vec()),
        ("models/somebody/parts/config.json", b"{}".to_vec()),
        ("models/somebody/parts/model-00001-of-00002.safetensors", b"1".to_vec()),
        ("datasets/somebody/data/folder/train.parquet", b"train".to_vec()),
        ("datasets/somebody/data/folder/dev.parquet", b"dev".to_vec()),
    ]
}

/// A workspace whose manifests name repositories of the server, and a cache of its own.
struct Workspace {
    root: TempDir,
    server: Server,
    catalogue: Catalogue,
}

impl Workspace {
    fn new() -> Self {
        Self::with_manifest(&[("", "")], None)
    }

    fn with_manifest(changes: &[(&str, &str)], token: Option<&'static str>) -> Self {
        let root = TempDir::new().expect("a temporary folder");
        let mut model = format!(
            "description = \"\"\nlicence = \"\"\nformat = \"checkpoint\"\n[source.hub]\nrepository = \"{ID}\"\n\
             revision = \"{COMMIT}\"\nfiles = [\"config.json\", \"pytorch_model.bin\", \"spm.model\"]\n"
        );
        for (from, to) in changes {
            model = model.replace(from, to);
        }
        let table = "description = \"\"\nlicence = \"\"\n[source.hub]\nrepository = \"somebody/data\"\nrevision = \"main\"\n\
                     [format.parquet]\ntext = [\"text\"]\nlabel = \"label\"\nlabels.scalar = { range = [0.0, 1.0] }\n\
                     split.files = { train = \"folder/train.parquet\", dev = \"folder/dev.parquet\" }\n\
                     evaluation = [\"r2\"]\n";
        for (name, manifest) in [("tiny.toml", model.as_str()), ("data.toml", table)] {
            fs::write(root.path().join(name), manifest).expect("a manifest");
        }
        let catalogue = Catalogue::open(root.path(), &root.path().join("materials")).expect("a catalogue");
        Self { root, server: Server::start(&files(), token), catalogue }
    }

    fn hub(&self) -> Hub {
        Hub::at(&self.server.endpoint, &self.path("cache"))
    }

    fn path(&self, inside: &str) -> PathBuf {
        self.root.path().join(inside)
    }

    fn fetch(&self) -> Result<Fetched, TaskError> {
        self.catalogue.fetch("tiny", &self.hub())
    }

    /// Where the cache keeps the weights.
    fn blob(&self) -> PathBuf {
        self.path("cache/models--somebody--tiny/blobs").join(tag("pytorch_model.bin", &weights()))
    }

    fn text_of(&self, error: &TaskError) -> String {
        let text = error.to_string().replace(&self.root.path().display().to_string(), "ROOT");
        text.replace(&self.server.endpoint, "ENDPOINT")
    }

    #[track_caller]
    fn error(&self, result: Result<Fetched, TaskError>) -> String {
        self.text_of(&result.expect_err("a failure"))
    }

    /// That everything is as it should be after a download.
    #[track_caller]
    fn check_whole(&self) {
        let folder = self.catalogue.checkpoint("tiny").expect("fetched");
        assert_eq!(folder, self.path("materials/tiny"));
        assert_eq!(fs::read(folder.join("pytorch_model.bin")).expect("a file"), weights());
        assert_eq!(fs::read(folder.join("spm.model")).expect("a file"), b"pieces");
        assert_eq!(names(&self.path("materials")), ["tiny"]);
        assert!(
            names(&self.path("cache/models--somebody--tiny/blobs"))
                .iter()
                .all(|name| !name.ends_with("part"))
        );
    }
}

/// Names in a folder, hidden ones included; none if there is no folder.
fn names(folder: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let mut names: Vec<_> =
        entries.map(|entry| entry.expect("an entry").file_name().into_string().expect("UTF-8")).collect();
    names.sort();
    names
}

/// Requests for the content of the weights: what of it was asked for.
fn ranges(requests: &[Request]) -> Vec<Option<&str>> {
    let of_weights = requests.iter().filter(|it| it.store && it.path.ends_with("pytorch_model.bin"));
    of_weights.map(|request| request.range.as_deref()).collect()
}

#[test]
fn files_go_to_the_cache_that_others_share_and_links_to_the_materials() {
    let workspace = Workspace::new();
    assert!(matches!(workspace.catalogue.checkpoint("tiny"), Err(TaskError::NotFetched { .. })));
    assert_eq!(workspace.fetch().expect("a download"), Fetched::New(workspace.path("materials/tiny")));
    workspace.check_whole();
    assert_eq!(workspace.catalogue.checkpoint(ID).expect("the same"), workspace.path("materials/tiny"));

    // The layout of `huggingface_hub` in Python: blobs by hash, and relative links by commit.
    let cache = workspace.path("cache/models--somebody--tiny");
    let snapshot = cache.join("snapshots").join(COMMIT);
    assert_eq!(names(&snapshot), ["config.json", "pytorch_model.bin", "spm.model"]);
    let link = fs::read_link(snapshot.join("pytorch_model.bin")).expect("a link");
    assert_eq!(link, Path::new("../../blobs").join(tag("pytorch_model.bin", &weights())));
    assert_eq!(
        fs::canonicalize(snapshot.join("config.json")).expect("a link").parent(),
        Some(&*cache.join("blobs"))
    );

    workspace.server.requests();
    assert_eq!(workspace.fetch().expect("nothing to do"), Fetched::Present(workspace.path("materials/tiny")));
    assert_eq!(workspace.server.requests(), []);

    // Another workspace finds them in the cache, without a connection.
    fs::remove_dir_all(workspace.path("materials")).expect("our own folder");
    let offline = Hub::at("http://127.0.0.1:9", &workspace.path("cache")).offline();
    assert!(matches!(workspace.catalogue.fetch("tiny", &offline), Ok(Fetched::New(_))));
    workspace.check_whole();
}

#[test]
fn data_sets_have_folders_and_branches() {
    let workspace = Workspace::new();
    workspace.catalogue.fetch("data", &workspace.hub()).expect("a download");
    assert_eq!(fs::read(workspace.path("materials/data/folder/dev.parquet")).expect("a file"), b"dev");
    let cache = workspace.path("cache/datasets--somebody--data");
    assert_eq!(fs::read_to_string(cache.join("refs/main")).expect("a file"), COMMIT);
    let link =
        fs::read_link(cache.join("snapshots").join(COMMIT).join("folder/dev.parquet")).expect("a link");
    assert_eq!(link, Path::new("../../../blobs").join(tag("dev.parquet", b"dev")));
    assert_eq!(workspace.catalogue.data_sets("data").expect("a data set"), ["data"]);
    assert_eq!(workspace.catalogue.data_sets("somebody/data").expect("its source"), ["data"]);
    // The branch is known to the cache.
    fs::remove_dir_all(workspace.path("materials")).expect("our own folder");
    let offline = workspace.hub().offline();
    assert!(matches!(workspace.catalogue.fetch("data", &offline), Ok(Fetched::New(_))));
}

#[test]
fn a_model_needs_no_manifest() {
    let workspace = Workspace::new();
    let folder = workspace.path("materials/somebody/both");
    let fetch = |name: &str, hub: &Hub| workspace.catalogue.fetch_model(name, hub);
    assert_eq!(fetch("somebody/both", &workspace.hub()).expect("a download"), Fetched::New(folder.clone()));
    let expected =
        [".adalora-fetched", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"];
    assert_eq!(names(&folder), expected);
    assert_eq!(workspace.catalogue.checkpoint("somebody/both").expect("fetched"), folder);

    workspace.server.requests();
    for same in ["somebody/both", &format!("somebody/both@{COMMIT}")] {
        assert_eq!(fetch(same, &workspace.hub()).expect("nothing to do"), Fetched::Present(folder.clone()));
    }
    assert_eq!(workspace.server.requests(), []);
    // Without what it links to it is fetched anew.
    fs::remove_dir_all(workspace.path("cache")).expect("our own folder");
    assert_eq!(fetch("somebody/both", &workspace.hub()).expect("a download"), Fetched::New(folder.clone()));
    fs::remove_dir_all(workspace.path("materials")).expect("our own folder");
    let offline = workspace.hub().offline();
    assert_eq!(fetch("somebody/both", &offline).expect("in the cache"), Fetched::New(folder));

    // One that a manifest names is the manifest's.
    fetch(ID, &workspace.hub()).expect("a download");
    assert_eq!(names(&workspace.path("materials")), ["somebody", "tiny"]);
}

#[test]
fn files_put_there_by_hand_are_taken() {
    let workspace = Workspace::with_manifest(
        &[
            ("\"spm.model\"]", "\"spm.model\"]\n[source.hub.sha256]\n\"spm.model\" = \"HASH\""),
            ("HASH", &tag("spm.model", b"pieces")),
        ],
        None,
    );
    let folder = workspace.path("materials/tiny");
    fs::create_dir_all(&folder).expect("a new folder");
    for file in ["config.json", "pytorch_model.bin", "spm.model"] {
        assert!(workspace.catalogue.checkpoint("tiny").is_err());
        fs::write(folder.join(file), "pieces").expect("a file");
    }
    assert_eq!(workspace.catalogue.checkpoint("tiny").expect("provided"), folder);
    assert_eq!(workspace.fetch().expect("nothing to do"), Fetched::Present(folder.clone()));
    assert_eq!(workspace.server.requests(), []);
    fs::write(folder.join("spm.model"), "others").expect("a file");
    assert!(matches!(workspace.fetch(), Err(TaskError::HashMismatch { .. })));
}

#[test]
fn a_lost_connection_is_opened_again_and_goes_on() {
    let workspace = Workspace::new();
    workspace.server.fault(Fault::BreakAfter(70_000));
    workspace.server.fault(Fault::BreakAfter(50_000));
    workspace.fetch().expect("a download in three parts");
    workspace.check_whole();
    let requests = workspace.server.requests();
    assert_eq!(ranges(&requests), [None, Some("bytes=70000-"), Some("bytes=120000-")]);
}

#[test]
fn a_download_that_broke_off_goes_on_in_the_next_run() {
    let workspace = Workspace::new();
    for bytes in [70_000, 0] {
        workspace.server.fault(Fault::BreakAfter(bytes));
    }
    let error = workspace.error(workspace.fetch());
    assert!(error.contains("`pytorch_model.bin` broke off after 70000 of 200000 bytes"), "{error}");
    assert!(!workspace.path("materials/tiny").exists() && !workspace.blob().exists());
    workspace.server.requests();
    workspace.fetch().expect("the rest");
    workspace.check_whole();
    assert_eq!(ranges(&workspace.server.requests()), [Some("bytes=70000-")]);
}

/// What a program that was killed may have left.
#[test]
fn whatever_part_is_there_the_file_is_right() {
    let mut longer = weights();
    longer.push(0);
    for (part, fault, asked) in [
        (weights()[..1000].to_vec(), None, vec![Some("bytes=1000-")]),
        // The server sends the whole file.
        (weights()[..1000].to_vec(), Some(Fault::IgnoreRange), vec![Some("bytes=1000-")]),
        (weights(), None, vec![]),
        (longer, None, vec![None]),
    ] {
        let workspace = Workspace::new();
        fs::create_dir_all(workspace.blob().parent().expect("a folder")).expect("a new folder");
        fs::write(workspace.blob().with_extension("part"), part).expect("a file");
        fault.into_iter().for_each(|fault| workspace.server.fault(fault));
        workspace.fetch().expect("a download");
        workspace.check_whole();
        assert_eq!(ranges(&workspace.server.requests()), asked);
    }
}

#[test]
fn a_damaged_file_is_refused_and_nothing_is_left_of_it() {
    for wrong_part in [false, true] {
        let workspace = Workspace::new();
        fs::create_dir_all(workspace.blob().parent().expect("a folder")).expect("a new folder");
        if wrong_part {
            fs::write(workspace.blob().with_extension("part"), [7; 1000]).expect("a file");
        } else {
            workspace.server.fault(Fault::Corrupt);
        }
        let error = workspace.error(workspace.fetch());
        assert!(error.contains("`pytorch_model.bin` arrived damaged and was thrown away"), "{error}");
        assert_eq!(names(&workspace.path("materials")), [""; 0]);
        assert!(!workspace.blob().exists() && !workspace.blob().with_extension("part").exists());
        let snapshot = workspace.path("cache/models--somebody--tiny/snapshots").join(COMMIT);
        assert_eq!(names(&snapshot), ["config.json"]);
        workspace.fetch().expect("a download");
        workspace.check_whole();
    }
}

#[test]
fn what_others_damaged_in_the_cache_is_fetched_anew() {
    let workspace = Workspace::new();
    workspace.fetch().expect("a download");
    fs::write(workspace.blob(), "half").expect("our own file");
    fs::remove_dir_all(workspace.path("materials")).expect("our own folder");
    workspace.server.requests();
    workspace.fetch().expect("a download");
    workspace.check_whole();
    assert_eq!(ranges(&workspace.server.requests()), [None]);
}

#[test]
fn two_at_a_time_download_once() {
    let workspace = Workspace::new();
    thread::scope(|scope| {
        let both: Vec<_> = (0..2).map(|_| scope.spawn(|| workspace.fetch().expect("a download"))).collect();
        both.into_iter().for_each(|thread| drop(thread.join().expect("no panic")));
    });
    workspace.check_whole();
    assert_eq!(ranges(&workspace.server.requests()), [None]);
}

#[test]
fn the_token_goes_to_the_hub_alone() {
    let workspace = Workspace::with_manifest(&[], Some("secret"));
    let hub = workspace.hub().with_token("secret");
    workspace.catalogue.fetch("tiny", &hub).expect("a download");
    workspace.catalogue.fetch_model("somebody/both", &hub).expect("a download");
    let requests = workspace.server.requests();
    let (store, own): (Vec<_>, Vec<_>) = requests.iter().partition(|request| request.store);
    assert!(store.len() >= 3 && own.len() >= 8);
    assert!(store.iter().all(|request| request.token.is_none()));
    assert!(own.iter().all(|request| request.token.as_deref() == Some("secret")));
    assert!(!format!("{hub:?}").contains("secret"));

    let workspace = Workspace::new();
    workspace.fetch().expect("a download");
    assert!(workspace.server.requests().iter().all(|request| request.token.is_none()));
}

#[test]
fn progress_is_told_file_by_file() {
    use std::cell::RefCell;
    use std::rc::Rc;

    let workspace = Workspace::new();
    let told = Rc::new(RefCell::new(Vec::new()));
    let heard = Rc::clone(&told);
    let hub = workspace.hub().on_progress(move |progress| {
        heard.borrow_mut().push((progress.file.to_owned(), progress.done, progress.size))
    });
    workspace.server.fault(Fault::BreakAfter(70_000));
    workspace.catalogue.fetch("tiny", &hub).expect("a download");
    let told = told.borrow();
    let weights: Vec<u64> =
        told.iter().filter(|(file, ..)| file == "pytorch_model.bin").map(|it| it.1).collect();
    assert!(weights.is_sorted());
    assert!(weights.contains(&70_000));
    assert_eq!((weights.first(), weights.last()), (Some(&0), Some(&200_000)));
    let mut files: Vec<&str> = told.iter().map(|(file, ..)| file.as_str()).collect();
    files.dedup();
    assert_eq!(files, ["config.json", "pytorch_model.bin", "spm.model"]);
}

#[test]
fn each_failure_says_what_to_do() {
    let closed = {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        format!("http://{}", listener.local_addr().expect("bound"))
    };
    let workspace = Workspace::new();
    let fetch = |name: &str, hub: Hub| workspace.error(workspace.catalogue.fetch_model(name, &hub));
    let fault = |fault| {
        let workspace = Workspace::new();
        workspace.server.fault(fault);
        workspace.error(workspace.fetch())
    };
    let manifest = |from: &str, to: &str| {
        let workspace = Workspace::with_manifest(&[(from, to)], None);
        workspace.error(workspace.fetch())
    };
    let files = "\"spm.model\"]";
    let hash = format!("{files}\n[source.hub.sha256]\n\"spm.model\" = \"{}\"", "0".repeat(64));
    let errors = [
        fetch("tiny", Hub::at(&closed, &workspace.path("cache"))).replace(&closed, "CLOSED"),
        fetch("somebody/both", Hub::at(&closed, &workspace.path("cache"))).replace(&closed, "CLOSED"),
        fetch("tiny", workspace.hub().offline()),
        fetch("somebody/both", workspace.hub().offline()),
        fetch("somebody/nothing", workspace.hub()),
        fetch("somebody/nothing", workspace.hub().with_token("secret")),
        fetch("somebody/both@v2", workspace.hub()),
        fetch("somebody/parts", workspace.hub()),
        fetch("data", workspace.hub()),
        fetch("bert-base", workspace.hub()),
        fetch("somebody/both", Hub::at("no address", &workspace.path("cache"))),
        fetch(
            "somebody/both",
            Hub::at(&format!("{}/elsewhere", workspace.server.endpoint), &workspace.path("cache")),
        ),
        workspace.text_of(&workspace.catalogue.fetch(ID, &workspace.hub().offline()).expect_err("a failure")),
        workspace.text_of(&workspace.catalogue.data_sets("somebody/both").expect_err("a model")),
        workspace.text_of(&workspace.catalogue.data_sets("tiny").expect_err("a model")),
        workspace.text_of(&workspace.catalogue.data_sets("dat").expect_err("no name")),
        manifest(files, "\"vocab.txt\"]"),
        manifest(COMMIT, "v2"),
        manifest("somebody/tiny", "nobody/tiny"),
        manifest(files, &hash),
        fault(Fault::Status(403, "GatedRepo")),
        fault(Fault::Status(500, "")),
        fault(Fault::BreakAfter(0)).split_once(" (").expect("a reason").0.into(),
        fault(Fault::Corrupt),
    ];
    insta::assert_snapshot!(errors.join("\n"));
}
