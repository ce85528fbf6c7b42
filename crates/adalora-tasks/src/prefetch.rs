//! Batches prepared ahead of their use, on a thread of their own.

use std::panic::resume_unwind;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread::{self, JoinHandle};

use crate::batch::Batch;
use crate::dataset::Example;

/// Batches that wait to be taken. Collating one is far quicker than a training step on it, so that this many cover
/// even a step that is an exception; more would only hold memory.
const AHEAD: usize = 2;

/// The batches of an order, collated on a background thread while the one before is in use.
///
/// They come exactly as [`Batch::collate`] makes them, in the order given, so that what a run computes does not depend
/// on it. At most 3 are ready or in the making; the thread then sleeps until one is taken. Dropping the iterator ends
/// the thread, at the latest with the batch that it is working on.
///
/// The order may be endless and is asked for on the background thread, so one that sorts and shuffles at the start of
/// an epoch does not hold up training either:
///
/// ```
/// # use std::sync::Arc;
/// # use adalora_tasks::{Batch, Example, Label, Prefetch, epoch_order};
/// # let example = |length| Example { ids: vec![5; length], type_ids: vec![0; length], label: Label::Class(0) };
/// # let examples: Arc<[Example]> = (1..=7).map(example).collect();
/// # let (batch_size, seed, pad_id) = (2, 1, 0);
/// let data = Arc::clone(&examples);
/// let order = (0..).flat_map(move |epoch| epoch_order(&data, batch_size, seed, epoch));
/// // A resumed run skips the batches it has had.
/// let mut batches = Prefetch::new(Arc::clone(&examples), pad_id, order.skip(6));
/// let batch = batches.next().expect("an endless order");
/// # assert_eq!(batch, Batch::collate(&examples, &epoch_order(&examples, 2, 1, 1)[2], 0));
/// ```
#[derive(Debug)]
pub struct Prefetch {
    /// `None` once the thread has been joined.
    running: Option<(Receiver<Batch>, JoinHandle<()>)>,
}

impl Prefetch {
    /// Starts to collate the batches of `order`, which are indices into `examples`.
    pub fn new(
        examples: Arc<[Example]>,
        pad_id: u32,
        order: impl Iterator<Item = Vec<usize>> + Send + 'static,
    ) -> Self {
        let (ready, taken) = sync_channel(AHEAD);
        let collate = move || {
            for indices in order {
                if ready.send(Batch::collate(&examples, &indices, pad_id)).is_err() {
                    return;
                }
            }
        };
        let thread = thread::Builder::new().name("batches".into()).spawn(collate);
        Self { running: Some((taken, thread.expect("the system can start a thread"))) }
    }
}

impl Iterator for Prefetch {
    type Item = Batch;

    /// The next batch; waits for it if it is not ready.
    ///
    /// # Panics
    ///
    /// With the panic of the background thread, after the batches before it: an index that is out of range, labels of
    /// two kinds, or whatever `order` panics with.
    fn next(&mut self) -> Option<Batch> {
        let (taken, _) = self.running.as_ref()?;
        if let Ok(batch) = taken.recv() {
            return Some(batch);
        }
        let (_, thread) = self.running.take().expect("looked at above");
        thread.join().unwrap_or_else(|panic| resume_unwind(panic));
        None
    }
}

impl Drop for Prefetch {
    fn drop(&mut self) {
        if let Some((taken, thread)) = self.running.take() {
            // The thread's next `send` fails. A panic over a batch that nobody wants any more concerns nobody.
            drop(taken);
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use super::*;
    use crate::batch::epoch_order;
    use crate::dataset::Label;

    fn examples() -> Arc<[Example]> {
        let of_length = |length| Example {
            ids: vec![length as u32; length],
            type_ids: vec![1; length],
            label: Label::Class(length % 3),
        };
        (0..200).map(|index| of_length(1 + index * 37 % 23)).collect()
    }

    #[test]
    fn the_same_batches_as_without_it() {
        let examples = examples();
        let order: Vec<_> = (0..5).flat_map(|epoch| epoch_order(&examples, 7, 3, epoch)).collect();
        let plain: Vec<_> = order.iter().map(|indices| Batch::collate(&examples, indices, 9)).collect();
        let mut ahead = Prefetch::new(examples, 9, order.into_iter());
        assert_eq!(ahead.by_ref().collect::<Vec<_>>(), plain);
        assert_eq!((ahead.next(), ahead.next()), (None, None));
    }

    /// Counts what was asked of an endless order.
    fn counted() -> (Arc<AtomicUsize>, impl Iterator<Item = Vec<usize>> + Send + 'static) {
        let asked = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&asked);
        let order = (0..).map(move |index| {
            count.fetch_add(1, Ordering::SeqCst);
            vec![index % 200]
        });
        (asked, order)
    }

    #[test]
    fn it_works_ahead_but_only_so_far() {
        let (asked, order) = counted();
        let mut batches = Prefetch::new(examples(), 0, order);
        for taken in 0..50 {
            // Ready are `AHEAD`, and the thread waits with one more in its hand.
            while asked.load(Ordering::SeqCst) < taken + AHEAD + 1 {
                thread::sleep(Duration::from_millis(1));
            }
            thread::sleep(Duration::from_millis(1));
            assert_eq!(asked.load(Ordering::SeqCst), taken + AHEAD + 1);
            batches.next().expect("an endless order");
        }
    }

    #[test]
    fn dropping_it_midway_ends_the_thread() {
        let examples = examples();
        let (asked, order) = counted();
        let mut batches = Prefetch::new(Arc::clone(&examples), 0, order);
        batches.next().expect("an endless order");
        drop(batches);
        // The thread owned both; nothing is left of it.
        assert_eq!((Arc::strong_count(&examples), Arc::strong_count(&asked)), (1, 1));
    }

    #[test]
    fn a_panic_comes_after_the_batches_before_it() {
        let order = vec![vec![0, 1], vec![2], vec![3, 999]];
        let mut batches = Prefetch::new(examples(), 0, order.into_iter());
        assert_eq!(
            (batches.next().map(|batch| batch.rows), batches.next().map(|batch| batch.rows)),
            (Some(2), Some(1))
        );
        let panic = catch_unwind(AssertUnwindSafe(|| batches.next())).expect_err("no example 999");
        assert!(panic.downcast_ref::<String>().is_some_and(|text| text.contains("999")), "{panic:?}");
        assert_eq!(batches.next(), None);
    }

    #[test]
    fn a_panic_that_nobody_waits_for_is_dropped_with_it() {
        drop(Prefetch::new(examples(), 0, vec![vec![999]].into_iter()));
    }
}
