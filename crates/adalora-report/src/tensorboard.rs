//! TensorBoard event files, derived from the records of a run.
//!
//! Tags are those of Hugging Face's trainer (`train/loss`, `eval/accuracy`), so that runs of both lie over each other; what
//! it does not have is called as in `metrics.jsonl`, under `train/`. What `metrics.jsonl` has for each adapter stays there.
//!
//! The file is a sequence of records as TensorFlow frames them (`tensorflow/core/lib/io/record_writer.h`): length as
//! u64, its masked CRC-32C, an `Event` (`tensorflow/core/util/event.proto`), its masked CRC-32C, all little-endian.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prost::Message;

use crate::ReportError;
use crate::record::{LogRecord, Shares};

/// Name of the event file in a run's folder. TensorBoard takes files whose names contain `tfevents`.
pub const EVENTS_FILE: &str = "events.out.tfevents.adalora";

/// The event file of one run, open for appending.
#[derive(Debug)]
pub struct EventFile {
    path: PathBuf,
    file: File,
    /// When training began: the records count seconds from there.
    start: SystemTime,
}

impl EventFile {
    /// Starts the file anew with the records that there are, of a run whose training began at `start`.
    ///
    /// # Errors
    ///
    /// If it cannot be written.
    pub fn create(folder: &Path, start: SystemTime, records: &[LogRecord]) -> Result<Self, ReportError> {
        let path = folder.join(EVENTS_FILE);
        let file = File::create(&path).map_err(|source| ReportError::Io { path: path.clone(), source })?;
        let mut events = Self { path, file, start };
        events.write(&Event {
            wall_time: unix(start),
            file_version: Some("brain.Event:2".into()),
            ..Event::default()
        })?;
        for record in records {
            events.append(record)?;
        }
        Ok(events)
    }

    /// Appends the values of one record.
    ///
    /// # Errors
    ///
    /// If it cannot be written.
    pub fn append(&mut self, record: &LogRecord) -> Result<(), ReportError> {
        let (step, seconds, values) = values(record);
        let value =
            values.into_iter().map(|(tag, value)| Value { tag, simple_value: value as f32 }).collect();
        // A clock that was set back gives seconds below 0, which no duration holds.
        let elapsed = Duration::try_from_secs_f64(seconds).unwrap_or_default();
        self.write(&Event {
            wall_time: unix(self.start.checked_add(elapsed).unwrap_or(self.start)),
            step: step as i64,
            summary: Some(Summary { value }),
            ..Event::default()
        })
    }

    /// One write for each record, so that a reader never waits for the rest of one.
    fn write(&mut self, event: &Event) -> Result<(), ReportError> {
        self.file
            .write_all(&framed(&event.encode_to_vec()))
            .map_err(|source| ReportError::Io { path: self.path.clone(), source })
    }
}

/// Step, seconds since the start, and values by tag.
fn values(record: &LogRecord) -> (usize, f64, Vec<(String, f64)>) {
    match record {
        LogRecord::Train(train) => {
            let count = |count: Option<usize>| count.map(|count| count as f64);
            let share = |of: fn(&Shares) -> f32| train.shares.as_ref().map(|shares| f64::from(of(shares)));
            let optional = [
                ("train/orthogonality", train.orthogonality),
                ("train/shares/lambda", share(|shares| shares.lambda)),
                ("train/shares/p", share(|shares| shares.p)),
                ("train/shares/q", share(|shares| shares.q)),
                ("train/budget", count(train.budget)),
                ("train/live", count(train.live)),
            ];
            let always = [
                ("train/loss", train.loss),
                ("train/learning_rate", train.lr),
                ("train/grad_norm", train.grad_norm),
            ];
            let present = optional.into_iter().filter_map(|(tag, value)| Some((tag, value?)));
            let values = always.into_iter().chain(present).map(|(tag, value)| (tag.to_owned(), value));
            (train.step, train.seconds, values.collect())
        }
        LogRecord::Dev(dev) => {
            let loss = ("eval/loss".to_owned(), dev.loss);
            let scores = dev.scores.iter().map(|(name, &score)| (format!("eval/{name}"), score));
            (dev.step, dev.seconds, std::iter::once(loss).chain(scores).collect())
        }
    }
}

fn unix(time: SystemTime) -> f64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

fn framed(event: &[u8]) -> Vec<u8> {
    let length = (event.len() as u64).to_le_bytes();
    [&length[..], &masked_crc(&length), event, &masked_crc(event)].concat()
}

/// CRC-32C, rotated and shifted by a constant, so that a checksum over bytes that hold checksums is not weakened.
fn masked_crc(bytes: &[u8]) -> [u8; 4] {
    crc32c::crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8).to_le_bytes()
}

#[derive(Clone, PartialEq, Message)]
struct Event {
    #[prost(double, tag = "1")]
    wall_time: f64,
    #[prost(int64, tag = "2")]
    step: i64,
    #[prost(string, optional, tag = "3")]
    file_version: Option<String>,
    #[prost(message, optional, tag = "5")]
    summary: Option<Summary>,
}

#[derive(Clone, PartialEq, Message)]
struct Summary {
    #[prost(message, repeated, tag = "1")]
    value: Vec<Value>,
}

#[derive(Clone, PartialEq, Message)]
struct Value {
    #[prost(string, tag = "1")]
    tag: String,
    #[prost(float, tag = "2")]
    simple_value: f32,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{DevRecord, TrainRecord};

    fn train(step: usize) -> LogRecord {
        LogRecord::Train(TrainRecord {
            step,
            loss: 0.5,
            orthogonality: None,
            residuals: None,
            shares: None,
            lr: 1e-3,
            grad_norm: f64::NAN,
            budget: Some(48),
            live: Some(40),
            seconds: 1.5,
        })
    }

    #[test]
    fn a_checksum_is_that_of_tensorflow() {
        // `masked_crc32c(b"123456789")` of tensorboard 2.20.
        assert_eq!(u32::from_le_bytes(masked_crc(b"123456789")), 0xc78a_b0e5);
    }

    #[test]
    fn records_become_tagged_values() {
        let dev = LogRecord::Dev(DevRecord {
            step: 20,
            loss: 0.4,
            scores: [("accuracy".to_owned(), 0.75)].into(),
            intervals: [].into(),
            seconds: 2.0,
        });
        let tags = |record: LogRecord| {
            let (step, seconds, values) = values(&record);
            let tags: Vec<_> = values.into_iter().map(|(tag, value)| format!("{tag} {value}")).collect();
            format!("{step} {seconds} {}", tags.join(", "))
        };
        assert_eq!(
            tags(train(10)),
            "10 1.5 train/loss 0.5, train/learning_rate 0.001, train/grad_norm NaN, train/budget 48, train/live 40"
        );
        assert_eq!(tags(dev), "20 2 eval/loss 0.4, eval/accuracy 0.75");
    }

    #[test]
    fn appended_or_derived_the_file_is_the_same() {
        let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let start = UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        let mut events = EventFile::create(one.path(), start, &[]).unwrap();
        events.append(&train(10)).unwrap();
        events.append(&train(20)).unwrap();
        EventFile::create(other.path(), start, &[train(10), train(20)]).unwrap();
        let read = |folder: &Path| std::fs::read(folder.join(EVENTS_FILE)).unwrap();
        assert_eq!(read(one.path()), read(other.path()));
        assert!(read(one.path()).len() > 100);
    }
}
