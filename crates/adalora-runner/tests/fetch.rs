//! `adalora fetch` with the environment of a user of the hub, on a hub on this machine.

#[path = "../../adalora-tasks/tests/hub_server/mod.rs"]
mod hub_server;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use adalora_tasks::{Catalogue, Dataset, TaskSpec};
use hub_server::{COMMIT, Fault, Server};
use tempfile::TempDir;

/// CoLA as the hub has it, a few rows.
fn table(split: &str) -> Vec<u8> {
    let tables = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../reference/values/parquet/glue/cola");
    fs::read(tables.join(format!("{split}-00000-of-00001.parquet"))).expect("a file")
}

struct Workspace {
    root: TempDir,
    server: Server,
}

impl Workspace {
    fn new() -> Self {
        let root = TempDir::new().expect("a temporary folder");
        fs::create_dir(root.path().join("datasets")).expect("a new folder");
        let manifest = format!(
            "description = \"\"\nlicence = \"\"\nformat = \"checkpoint\"\n[source.hub]\nrepository = \"somebody/tiny\"\n\
             revision = \"{COMMIT}\"\nfiles = [\"config.json\", \"pytorch_model.bin\"]\n"
        );
        let data = format!(
            "description = \"\"\nlicence = \"\"\nformat.glue = {{ task = \"cola\" }}\n\
             source.hub = {{ repository = \"somebody/glue\", revision = \"{COMMIT}\" }}\n"
        );
        for (name, manifest) in [("tiny", manifest), ("acceptable", data)] {
            fs::write(root.path().join(format!("datasets/{name}.toml")), manifest).expect("a manifest");
        }
        let files = [
            ("datasets/somebody/glue/cola/train-00000-of-00001.parquet", table("train")),
            ("datasets/somebody/glue/cola/validation-00000-of-00001.parquet", table("validation")),
            ("models/somebody/tiny/config.json", b"{}".to_vec()),
            ("models/somebody/tiny/pytorch_model.bin", vec![7; 100_000]),
            ("models/somebody/other/config.json", b"{}".to_vec()),
            ("models/somebody/other/model.safetensors", vec![8; 1000]),
            ("models/somebody/other/spm.model", b"pieces".to_vec()),
        ];
        Self { root, server: Server::start(&files, Some("secret")) }
    }

    /// Exit code and standard error.
    fn fetch(&self, arguments: &[&str], environment: &[(&str, &str)]) -> (i32, String) {
        let output = Command::new(env!("CARGO_BIN_EXE_adalora"))
            .arg("fetch")
            .args(arguments)
            .current_dir(self.root.path())
            .env_clear()
            .env("HF_ENDPOINT", &self.server.endpoint)
            .env("HF_HOME", self.path("home"))
            .envs(environment.iter().copied())
            .output()
            .expect("the program starts");
        let said = String::from_utf8(output.stderr).expect("UTF-8");
        (output.status.code().expect("an exit code"), said.replace(&self.server.endpoint, "ENDPOINT"))
    }

    fn path(&self, inside: &str) -> PathBuf {
        self.root.path().join(inside)
    }
}

#[test]
fn endpoint_home_and_token_are_those_of_the_environment() {
    let workspace = Workspace::new();
    fs::create_dir(workspace.path("home")).expect("a new folder");
    let (code, said) = workspace.fetch(&["model", "tiny"], &[]);
    assert_eq!(code, 2);
    assert_eq!(
        said,
        "somebody/tiny: there is no ENDPOINT/somebody/tiny, or it is private: check the name, or set HF_TOKEN to a \
         token that may read it\n"
    );
    assert!(!workspace.path(".materials/tiny").exists());

    // The file that `hf auth login` writes.
    fs::write(workspace.path("home/token"), "secret").expect("a file");
    workspace.server.fault(Fault::BreakAfter(30_000));
    let (code, said) = workspace.fetch(&["tiny"], &[]);
    assert_eq!((code, said.as_str()), (0, "tiny is in ./.materials/tiny\n"));
    assert_eq!(
        fs::read(workspace.path(".materials/tiny/pytorch_model.bin")).expect("a file"),
        vec![7; 100_000]
    );
    assert!(workspace.path("home/hub/models--somebody--tiny/snapshots").join(COMMIT).is_dir());

    fs::remove_file(workspace.path("home/token")).expect("our own file");
    let (code, said) = workspace.fetch(&["model", "tiny", "somebody/other"], &[("HF_TOKEN", "secret")]);
    let expected = "tiny is in ./.materials/tiny already\nsomebody/other is in ./.materials/somebody/other\n";
    assert_eq!((code, said.as_str()), (0, expected));

    // Without a connection, from what is in the cache.
    let nowhere =
        [("HF_HUB_OFFLINE", "1"), ("HF_ENDPOINT", "http://127.0.0.1:9"), ("ADALORA_MATERIALS", "elsewhere")];
    let (code, said) = workspace.fetch(&["model", "somebody/tiny", "somebody/other"], &nowhere);
    assert_eq!(
        (code, said.as_str()),
        (0, "somebody/tiny is in elsewhere/tiny\nsomebody/other is in elsewhere/somebody/other\n")
    );
}

#[test]
fn a_data_set_is_fetched_and_read() {
    let workspace = Workspace::new();
    let secret = [("HF_TOKEN", "secret")];
    // By its name here, and by that of its repository.
    let (code, said) = workspace.fetch(&["data", "acceptable"], &secret);
    assert_eq!((code, said.as_str()), (0, "acceptable is in ./.materials/acceptable\n"));
    let (code, said) = workspace.fetch(&["data", "somebody/glue"], &secret);
    assert_eq!((code, said.as_str()), (0, "acceptable is in ./.materials/acceptable already\n"));

    let catalogue =
        Catalogue::open(&workspace.path("datasets"), &workspace.path(".materials")).expect("a catalogue");
    let task = TaskSpec { data: "acceptable".into(), max_length: 64, train_rows: None };
    let tokenizer = Path::new(env!("CARGO_MANIFEST_DIR")).join("../adalora-tasks/tests/fixtures");
    let data = Dataset::load(&catalogue, &task, &tokenizer).expect("what was fetched");
    assert_eq!((data.train.len(), data.dev[0].examples.len()), (3, 1));
}

#[test]
fn nothing_is_fetched_if_a_name_is_wrong() {
    let workspace = Workspace::new();
    for arguments in
        [&["tiny", "tinny"][..], &["data", "tiny"], &["data", "somebody/tiny"], &["somebody/other"]]
    {
        let (code, said) = workspace.fetch(arguments, &[("HF_TOKEN", "secret")]);
        assert_eq!(code, 2, "{said}");
    }
    assert!(!workspace.path(".materials").exists() && !workspace.path("home").exists());
    assert_eq!(workspace.server.requests(), []);
}
