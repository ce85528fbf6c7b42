//! All runs of an experiment, each in a process of its own, as many at a time as the machine has cores for.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, IsTerminal};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, mpsc};
use std::time::Duration;

use adalora_report::Status;
use anyhow::{Context, Result};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use crate::run_folder;
use crate::stop::Stop;
use crate::worker::{Event, in_one_line};

/// Activations come and go with every step, and the first touch of each page costs. On huge pages, which this asks glibc
/// for, a step takes up to 6 % less; see docs/benchmarks.md. What the user has set there is kept.
const MALLOC: (&str, &str) = ("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1");

/// A run that is to be started.
#[derive(Debug, Clone)]
pub struct Run {
    /// Variant and seed, as a user reads them.
    pub label: String,
    /// Arguments of this program that make it run as the worker of this run.
    pub arguments: Vec<String>,
    /// The run folder.
    pub folder: PathBuf,
}

/// How a sweep ended.
#[derive(Debug, Default)]
pub struct Ended {
    /// Runs that reached their last step.
    pub finished: usize,
    /// Labels of runs that failed, with the reason.
    pub failed: Vec<(String, String)>,
    /// Runs that were stopped, and those that were not begun for that reason.
    pub open: usize,
}

/// Starts every run, `jobs` at a time, and waits for all of them. One that fails does not stop the others.
///
/// # Errors
///
/// If a process cannot be started.
pub fn run(runs: Vec<Run>, jobs: usize, stop: &Stop) -> Result<Ended> {
    let screen = Screen::new(&runs);
    let queue = Mutex::new(VecDeque::from(runs));
    let children = Mutex::new(Vec::new());
    let (sender, receiver) = mpsc::channel::<(String, Result<Status>)>();
    let mut ended = Ended::default();
    std::thread::scope(|scope| {
        for _ in 0..jobs {
            let (queue, children, screen, sender) = (&queue, &children, &screen, sender.clone());
            scope.spawn(move || {
                // A statement of its own, so that the queue is free while the run goes on.
                let next = || queue.lock().expect("no thread panics with the queue").pop_front();
                while !stop.is_asked()
                    && let Some(run) = next()
                {
                    let status = one(&run, screen, children);
                    sender.send((run.label, status)).expect("the receiver outlives the threads");
                }
            });
        }
        drop(sender);
        loop {
            match receiver.recv_timeout(Duration::from_millis(200)) {
                Ok((_, Ok(Status::Finished { .. }))) => ended.finished += 1,
                Ok((_, Ok(Status::Interrupted { .. }))) => ended.open += 1,
                Ok((label, Ok(Status::Failed { reason, .. }))) => ended.failed.push((label, reason)),
                Ok((label, Ok(Status::Running { .. }))) => {
                    ended.failed.push((label, "ended without a word".into()));
                }
                Ok((label, Err(error))) => ended.failed.push((label, in_one_line(&error))),
                Err(mpsc::RecvTimeoutError::Timeout) => {}
                Err(mpsc::RecvTimeoutError::Disconnected) => break,
            }
            if stop.is_asked() {
                // Ctrl-C reaches the workers by itself, SIGTERM does not. Again and again, since one may just have
                // been started.
                for pid in children.lock().expect("no thread panics with the children").iter() {
                    let _ = rustix::process::kill_process(*pid, rustix::process::Signal::TERM);
                }
            }
        }
    });
    ended.open += queue.lock().expect("no thread panics with the queue").len();
    Ok(ended)
}

/// Runs one worker and shows what it tells, until it ends.
fn one(run: &Run, screen: &Screen, children: &Mutex<Vec<rustix::process::Pid>>) -> Result<Status> {
    // The running program itself, even if a build has replaced its file meanwhile: all runs are of one version.
    let mut child = Command::new("/proc/self/exe")
        .args(&run.arguments)
        .env(MALLOC.0, std::env::var(MALLOC.0).unwrap_or_else(|_| MALLOC.1.into()))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("a worker cannot be started")?;
    let pid = rustix::process::Pid::from_child(&child);
    children.lock().expect("no thread panics with the children").push(pid);
    let stderr = child.stderr.take().expect("standard error is piped");
    let complaint = std::thread::spawn(move || {
        let lines: Vec<_> = BufReader::new(stderr).lines().map_while(Result::ok).collect();
        lines.join("\n")
    });
    let status = follow(&mut child, run, screen);
    let exit = child.wait().context("a worker cannot be waited for")?;
    children.lock().expect("no thread panics with the children").retain(|own| *own != pid);
    let complaint = complaint.join().expect("reading lines does not panic");
    let status = status.unwrap_or_else(|| {
        let reason =
            if complaint.is_empty() { format!("the run's process ended with {exit}") } else { complaint };
        let failed = Status::Failed { step: run_folder::step(&run.folder), reason, diverged: false };
        // One that has a code was not killed: it refused to touch what is there.
        if exit.code().is_none() {
            run_folder::mark_died(&run.folder, &failed);
        }
        failed
    });
    screen.ended(run, &status);
    Ok(status)
}

/// Shows the events of a worker; the status it ends with, if it says one.
fn follow(child: &mut Child, run: &Run, screen: &Screen) -> Option<Status> {
    let stdout = child.stdout.take().expect("standard output is piped");
    let mut shown = Shown::new(screen, run);
    let mut last = None;
    for line in BufReader::new(stdout).lines().map_while(Result::ok) {
        match serde_json::from_str(&line) {
            Ok(Event::Ended(status)) => last = Some(status),
            Ok(event) => shown.event(&event),
            Err(_) => screen.line(&format!("{}  {line}", run.label)),
        }
    }
    shown.clear();
    last
}

/// A bar for each active run on a terminal, plain lines elsewhere.
struct Screen {
    bars: Option<MultiProgress>,
    total: Option<ProgressBar>,
    width: usize,
}

impl Screen {
    fn new(runs: &[Run]) -> Self {
        let width = runs.iter().map(|run| run.label.len()).max().unwrap_or(0);
        if !std::io::stderr().is_terminal() {
            return Self { bars: None, total: None, width };
        }
        let bars = MultiProgress::new();
        let total = bars.add(ProgressBar::new(runs.len() as u64));
        total.set_style(
            ProgressStyle::with_template("{pos} of {len} runs  {elapsed_precise}")
                .expect("the template is well formed"),
        );
        total.enable_steady_tick(Duration::from_secs(1));
        Self { bars: Some(bars), total: Some(total), width }
    }

    fn line(&self, text: &str) {
        match &self.bars {
            Some(bars) => drop(bars.println(text)),
            None => eprintln!("{text}"),
        }
    }

    fn ended(&self, run: &Run, status: &Status) {
        let how = match status {
            Status::Finished { step } => format!("finished after {step} steps"),
            Status::Interrupted { step } => format!("stopped after {step} steps"),
            Status::Failed { step, reason, .. } => format!("FAILED after {step} steps: {reason}"),
            Status::Running { step } => format!("ended without a word after {step} steps"),
        };
        if let Some(total) = &self.total {
            total.inc(1);
        }
        self.line(&format!("{:width$}  {how}", run.label, width = self.width));
    }
}

/// What is shown of one run.
struct Shown<'a> {
    screen: &'a Screen,
    label: String,
    bar: Option<ProgressBar>,
    total: usize,
    score: String,
    loss: f64,
}

impl<'a> Shown<'a> {
    fn new(screen: &'a Screen, run: &Run) -> Self {
        let bar = screen.bars.as_ref().map(|bars| {
            let bar = bars.insert_from_back(1, ProgressBar::new(1));
            let template = "{prefix}  {bar:30} {pos}/{len}  {msg}  {eta} left";
            bar.set_style(ProgressStyle::with_template(template).expect("the template is well formed"));
            bar.set_prefix(format!("{:width$}", run.label, width = screen.width));
            bar
        });
        let label = format!("{:width$}", run.label, width = screen.width);
        Self { screen, label, bar, total: 0, score: String::new(), loss: f64::NAN }
    }

    fn event(&mut self, event: &Event) {
        match event {
            Event::Started { total, notes } => {
                self.total = *total;
                if let Some(bar) = &self.bar {
                    bar.set_length(*total as u64);
                }
                for note in notes {
                    self.screen.line(&format!("{}  {note}", self.label));
                }
            }
            Event::Trained(record) => {
                self.loss = record.loss;
                if let Some(bar) = &self.bar {
                    bar.set_position(record.step as u64);
                    bar.set_message(format!("loss {:.3}{}", self.loss, self.score));
                }
            }
            Event::Evaluated(record) => {
                let scores = record.scores.iter().map(|(name, score)| format!("  {name} {score:.4}"));
                self.score = scores.collect();
                if self.bar.is_none() {
                    let (label, step, total) = (&self.label, record.step, self.total);
                    self.screen
                        .line(&format!("{label}  step {step}/{total}  loss {:.3}{}", self.loss, self.score));
                }
            }
            Event::Ended(_) => {}
        }
    }

    fn clear(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
