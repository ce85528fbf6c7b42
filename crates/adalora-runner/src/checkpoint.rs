//! Checkpoints of a run on disk.
//!
//! `checkpoints/step-00000120.1f3a9c0b2d4e5f67.safetensors`: the tensors of a [`State`], with the [`Progress`] as JSON in
//! the file's metadata. The second part of the name is the start of the file's own SHA-256, so that a truncated file or
//! a single wrong bit shows, also to `sha256sum`. A file is written beside its place, synced and renamed. The two of the
//! highest steps and the one of the best score are kept. Only steps are compared, never times of the clock.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use adalora_adapter::store::plain_shape;
use adalora_report::StepScores;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tch::{Kind, Tensor};

use crate::provenance::{Attempt, Origin};
use crate::trainer::State;

/// Folder of a run's checkpoints in the run folder.
pub const FOLDER: &str = "checkpoints";
/// Key of the progress in a file's metadata.
const PROGRESS: &str = "progress";

/// What a checkpoint says beside its tensors.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// Finished optimizer steps.
    pub step: usize,
    /// Wall time of training until here, in seconds, without what was lost when a process was killed.
    pub seconds: f64,
    /// Largest resident memory of any process that has worked on the run, in bytes.
    pub peak_rss_bytes: u64,
    /// Scores of the last evaluation.
    pub last: Option<StepScores>,
    /// Scores of the best one so far.
    pub best: Option<StepScores>,
    /// Length of `metrics.jsonl` and of `ranks.csv`, in bytes.
    pub log_bytes: [u64; 2],
    /// What a process that goes on must have in common with the one that began.
    pub origin: Origin,
    /// The processes that have worked on the run.
    pub attempts: Vec<Attempt>,
}

impl Progress {
    /// At the first step.
    pub fn new(origin: Origin, attempt: Attempt) -> Self {
        Self {
            step: 0,
            seconds: 0.0,
            peak_rss_bytes: 0,
            last: None,
            best: None,
            log_bytes: [0, 0],
            origin,
            attempts: vec![attempt],
        }
    }

    /// Where another process goes on.
    pub fn resumed(mut self, origin: Origin, attempt: Attempt) -> Self {
        self.attempts.push(attempt);
        Self { origin, ..self }
    }
}

/// A checkpoint that was read back whole.
#[derive(Debug)]
pub struct Saved {
    /// What it says beside the tensors.
    pub progress: Progress,
    /// The trainer's state.
    pub state: State,
}

/// A checkpoint could not be written.
#[derive(Debug, thiserror::Error)]
#[error("the checkpoint at step {step} could not be written: {}: {source}; {}", path.display(), Self::left(*.before))]
pub struct WriteError {
    step: usize,
    path: PathBuf,
    source: io::Error,
    /// Step of the one before.
    before: Option<usize>,
}

impl WriteError {
    fn left(before: Option<usize>) -> String {
        match before {
            Some(step) => {
                format!(
                    "the one at step {step} is untouched, and the run goes on from it once this is mended"
                )
            }
            None => "there is none before it".into(),
        }
    }
}

/// The checkpoints of one run, which this process holds.
#[derive(Debug)]
pub struct Checkpoints {
    folder: PathBuf,
}

impl Checkpoints {
    /// Those in a run folder, which may have none yet.
    pub fn of(run: &Path) -> Self {
        Self { folder: run.join(FOLDER) }
    }

    /// Steps and files, by ascending step. What has another name is none of ours.
    fn files(&self) -> Vec<(usize, PathBuf)> {
        let entries = fs::read_dir(&self.folder).into_iter().flatten().flatten();
        let mut files: Vec<_> =
            entries.filter_map(|entry| Some((parts(entry.file_name().to_str()?)?.0, entry.path()))).collect();
        files.sort();
        files
    }

    /// The highest step that there is a file for.
    pub fn highest(&self) -> Option<usize> {
        self.files().last().map(|(step, _)| *step)
    }

    /// Writes a checkpoint, and deletes those that are no longer needed.
    ///
    /// # Errors
    ///
    /// If it cannot be written: then those before it are all there.
    pub fn write(&self, progress: &Progress, state: &State) -> Result<(), WriteError> {
        let step = progress.step;
        let bytes = encode(progress, state);
        let path = self.folder.join(format!("step-{step:08}.{}.safetensors", hash(&bytes)));
        let beside = path.with_extension("tmp");
        write_synced(&self.folder, &beside, &path, &bytes).map_err(|source| {
            // On a full disk every byte counts.
            let _ = fs::remove_file(&beside);
            WriteError { step, path: path.clone(), source, before: self.highest() }
        })?;
        let best = progress.best.as_ref().map(|best| best.step);
        let files = self.files();
        let before = files.iter().rev().map(|(at, _)| *at).find(|at| *at < step);
        for (at, other) in files {
            // Files of later steps are from before the run went back to an earlier one: they were damaged.
            let kept = if at == step { other == path } else { Some(at) == before || Some(at) == best };
            if !kept {
                let _ = fs::remove_file(other);
            }
        }
        Ok(())
    }

    /// The whole checkpoint of the highest step whose logs are there, and what is wrong with those of higher ones.
    /// `log_bytes` are the lengths that the logs have now.
    pub fn newest(&self, log_bytes: [u64; 2]) -> (Option<Saved>, Vec<String>) {
        let mut complaints = Vec::new();
        for (_, path) in self.files().into_iter().rev() {
            let read = read(&path).and_then(|saved| {
                let short = saved.progress.log_bytes.iter().zip(log_bytes).any(|(then, now)| now < *then);
                if short {
                    Err("the logs of the run are shorter than they were then".into())
                } else {
                    Ok(saved)
                }
            });
            match read {
                Ok(saved) => return (Some(saved), complaints),
                Err(reason) => {
                    complaints.push(format!("{} is passed over: {reason}", path.display()));
                }
            }
        }
        (None, complaints)
    }
}

/// Step and hash in the name of a checkpoint.
fn parts(name: &str) -> Option<(usize, &str)> {
    let (step, hash) = name.strip_prefix("step-")?.strip_suffix(".safetensors")?.split_once('.')?;
    Some((step.parse().ok()?, hash))
}

/// The first 64 bits of SHA-256, in hexadecimal.
fn hash(bytes: &[u8]) -> String {
    Sha256::digest(bytes)[..8].iter().map(|byte| format!("{byte:02x}")).collect()
}

fn write_synced(folder: &Path, beside: &Path, path: &Path, bytes: &[u8]) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    let mut file = File::create(beside)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(beside, path)?;
    // The name too must outlive a machine that loses its power.
    File::open(folder)?.sync_all()
}

fn encode(progress: &Progress, state: &State) -> Vec<u8> {
    let contents: Vec<_> = state
        .tensors
        .iter()
        .map(|(name, tensor)| {
            let flat = tensor.contiguous();
            let mut bytes = vec![0; flat.numel() * flat.kind().elt_size_in_bytes()];
            flat.copy_data_u8(&mut bytes, flat.numel());
            (name.as_str(), dtype(tensor.kind()), tensor.size(), bytes)
        })
        .collect();
    let views = contents.iter().map(|(name, dtype, size, bytes)| {
        let shape = size.iter().map(|&d| d as usize).collect();
        (*name, TensorView::new(*dtype, shape, bytes).expect("as many bytes as the shape says"))
    });
    let progress = serde_json::to_string(progress).expect("progress can be written as JSON");
    safetensors::serialize(views, Some([(PROGRESS.to_owned(), progress)].into())).expect("names are distinct")
}

fn read(path: &Path) -> Result<Saved, String> {
    let bytes = fs::read(path).map_err(|error| error.to_string())?;
    let name = path.file_name().and_then(|name| name.to_str()).and_then(parts);
    let (_, expected) = name.ok_or("it has not the name of a checkpoint")?;
    checked(&bytes, expected)
}

/// What a file says, if its content has the hash that was expected.
fn checked(bytes: &[u8], expected: &str) -> Result<Saved, String> {
    if hash(bytes) != expected {
        return Err("its content is not what was written: it is truncated or damaged".into());
    }
    decode(bytes).ok_or_else(|| "it is not a checkpoint of this version of the program".into())
}

fn decode(bytes: &[u8]) -> Option<Saved> {
    let (_, metadata) = SafeTensors::read_metadata(bytes).ok()?;
    let progress: Progress = serde_json::from_str(metadata.metadata().as_ref()?.get(PROGRESS)?).ok()?;
    let file = SafeTensors::deserialize(bytes).ok()?;
    let tensors = file.iter().map(|(name, view)| {
        let size = plain_shape(view.shape())?;
        Some((name.to_owned(), Tensor::from_data_size(view.data(), &size, kind(view.dtype())?)))
    });
    let state = State { step: progress.step, tensors: tensors.collect::<Option<_>>()? };
    Some(Saved { progress, state })
}

/// The dtypes that a state may have.
const DTYPES: [(Kind, Dtype); 4] = [
    (Kind::Float, Dtype::F32),
    (Kind::Double, Dtype::F64),
    (Kind::Int64, Dtype::I64),
    (Kind::Bool, Dtype::BOOL),
];

fn dtype(kind: Kind) -> Dtype {
    let found = DTYPES.iter().find(|(own, _)| *own == kind);
    found.unwrap_or_else(|| panic!("the state of a run is f32, f64, i64 or bool, not {kind:?}")).1
}

fn kind(dtype: Dtype) -> Option<Kind> {
    DTYPES.iter().find(|(_, own)| *own == dtype).map(|(kind, _)| *kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn progress(step: usize, best: usize) -> Progress {
        let scores = |step, score| StepScores { step, scores: [("accuracy".to_owned(), score)].into() };
        Progress {
            step,
            seconds: 0.1 + 0.2,
            peak_rss_bytes: 1 << 30,
            last: Some(scores(step, f64::NAN)),
            best: Some(scores(best, 1.0 / 3.0)),
            log_bytes: [10, 20],
            origin: Origin {
                settings: "seed = 1\n".into(),
                program: crate::provenance::Program::own(),
                device: "cpu".into(),
                precision: adalora_models::Settled::F32,
                files: Vec::new(),
            },
            attempts: Vec::new(),
        }
    }

    fn state(step: usize) -> State {
        let tensors = [
            ("flags".to_owned(), Tensor::from_slice(&[true, false, true])),
            ("none".to_owned(), Tensor::zeros([0, 4], (Kind::Float, tch::Device::Cpu))),
            ("values".to_owned(), Tensor::from_slice(&[1.5f32, f32::MIN_POSITIVE / 4.0, -0.0, f32::NAN])),
        ];
        State { step, tensors: tensors.into() }
    }

    fn bits(tensor: &Tensor) -> Vec<u8> {
        let mut bytes = vec![0; tensor.numel() * tensor.kind().elt_size_in_bytes()];
        tensor.copy_data_u8(&mut bytes, tensor.numel());
        bytes
    }

    fn steps(checkpoints: &Checkpoints) -> Vec<usize> {
        checkpoints.files().iter().map(|(step, _)| *step).collect()
    }

    fn newest(checkpoints: &Checkpoints) -> (Option<usize>, Vec<String>) {
        let (saved, complaints) = checkpoints.newest([10, 20]);
        (saved.map(|saved| saved.progress.step), complaints)
    }

    #[test]
    fn what_is_written_is_read_bit_for_bit() {
        let folder = tempfile::tempdir().unwrap();
        let checkpoints = Checkpoints::of(folder.path());
        checkpoints.write(&progress(7, 5), &state(7)).unwrap();
        let (saved, complaints) = checkpoints.newest([10, 20]);
        let Saved { progress: read, state: tensors } = saved.unwrap();
        assert!(complaints.is_empty());
        assert_eq!(read.best, progress(7, 5).best);
        assert_eq!(read.seconds.to_bits(), (0.1f64 + 0.2).to_bits());
        assert!(read.last.unwrap().scores["accuracy"].is_nan());
        for (name, tensor) in state(7).tensors {
            let own = &tensors.tensors[&name];
            assert_eq!((own.size(), own.kind()), (tensor.size(), tensor.kind()), "{name}");
            assert_eq!(bits(own), bits(&tensor), "{name}");
        }
    }

    #[test]
    fn the_last_two_and_the_best_are_kept() {
        let folder = tempfile::tempdir().unwrap();
        let checkpoints = Checkpoints::of(folder.path());
        for (step, best) in [(2, 2), (4, 4), (6, 4), (8, 4), (10, 4)] {
            checkpoints.write(&progress(step, best), &state(step)).unwrap();
        }
        assert_eq!(steps(&checkpoints), [4, 8, 10]);
        checkpoints.write(&progress(12, 12), &state(12)).unwrap();
        assert_eq!(steps(&checkpoints), [10, 12]);
        assert_eq!(checkpoints.highest(), Some(12));
    }

    #[test]
    fn a_file_cut_at_any_place_or_with_any_bit_turned_is_passed_over() {
        let folder = tempfile::tempdir().unwrap();
        let checkpoints = Checkpoints::of(folder.path());
        checkpoints.write(&progress(3, 3), &state(3)).unwrap();
        checkpoints.write(&progress(5, 3), &state(5)).unwrap();
        let path = checkpoints.files()[1].1.clone();
        let whole = fs::read(&path).unwrap();
        let expected = hash(&whole);
        let refused = |bytes: &[u8], what: &str| {
            let reason = checked(bytes, &expected).expect_err(what);
            assert!(reason.ends_with("it is truncated or damaged"), "{what}: {reason}");
        };
        for length in 0..whole.len() {
            refused(&whole[..length], &format!("cut to {length} bytes"));
        }
        for bit in 0..8 * whole.len() {
            let mut bytes = whole.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            refused(&bytes, &format!("bit {bit}"));
        }
        fs::write(&path, &whole[1..]).unwrap();
        let (step, complaints) = newest(&checkpoints);
        assert_eq!((step, complaints.len()), (Some(3), 1), "{complaints:?}");
        fs::write(&path, &whole).unwrap();
        assert_eq!(newest(&checkpoints), (Some(5), Vec::new()));
    }

    #[test]
    fn after_going_back_the_damaged_one_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let checkpoints = Checkpoints::of(folder.path());
        for step in [3, 5] {
            checkpoints.write(&progress(step, 3), &state(step)).unwrap();
        }
        fs::write(&checkpoints.files()[1].1, "damaged").unwrap();
        checkpoints.write(&progress(4, 3), &state(4)).unwrap();
        assert_eq!(steps(&checkpoints), [3, 4]);
        assert_eq!(newest(&checkpoints), (Some(4), Vec::new()));
    }

    #[test]
    fn the_clock_has_no_say() {
        let folder = tempfile::tempdir().unwrap();
        let checkpoints = Checkpoints::of(folder.path());
        let (past, now) = (std::time::UNIX_EPOCH, std::time::SystemTime::now());
        for (step, time) in [(3, now), (5, past)] {
            checkpoints.write(&progress(step, 3), &state(step)).unwrap();
            let (_, path) = checkpoints.files().pop().unwrap();
            File::options().append(true).open(path).unwrap().set_modified(time).unwrap();
        }
        assert_eq!(newest(&checkpoints), (Some(5), Vec::new()));
        checkpoints.write(&progress(7, 3), &state(7)).unwrap();
        assert_eq!(steps(&checkpoints), [3, 5, 7]);
    }

    #[test]
    fn logs_that_have_lost_their_end_belong_to_an_earlier_checkpoint() {
        let folder = tempfile::tempdir().unwrap();
        let checkpoints = Checkpoints::of(folder.path());
        checkpoints.write(&progress(3, 3), &state(3)).unwrap();
        let longer = Progress { log_bytes: [11, 20], ..progress(5, 3) };
        checkpoints.write(&longer, &state(5)).unwrap();
        let (step, complaints) = newest(&checkpoints);
        assert_eq!(step, Some(3));
        assert!(complaints[0].ends_with("the logs of the run are shorter than they were then"));
    }

    #[test]
    fn a_folder_that_cannot_be_written_leaves_what_is_there() {
        let folder = tempfile::tempdir().unwrap();
        let checkpoints = Checkpoints::of(folder.path());
        fs::write(folder.path().join(FOLDER), "a file in the folder's place").unwrap();
        let error = checkpoints.write(&progress(3, 3), &state(3)).unwrap_err().to_string();
        assert!(error.starts_with("the checkpoint at step 3 could not be written: "), "{error}");
        assert!(error.ends_with("there is none before it"), "{error}");
    }
}
