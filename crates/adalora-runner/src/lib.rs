//! Experiment files, the trainer and the run folder. The program `adalora` is a thin layer over this.
//!
//! | subject | module |
//! |---|---|
//! | what an experiment file says, and every rule it can break | [`experiment`] |
//! | what will happen, worked out before anything is trained | [`plan`] |
//! | a rank pattern as a file: exported from a run, trained from scratch | [`pattern_file`] |
//! | a start from another run's adapter | [`warm_start`] |
//! | the same in words, for `adalora check` | [`check`] |
//! | the runs of a grid: frozen, tuned | [`grid`] |
//! | one training step, from top to bottom | [`trainer`] |
//! | the folder of one run | [`run_folder`] |
//! | checkpoints on disk, and what must not change between two of them | [`checkpoint`], [`provenance`] |
//! | one run in this process | [`worker`] |
//! | all runs of an experiment, each in a process of its own | [`sweep`] |
//! | the same as tasks of a Slurm array, and where all of them stand | [`slurm`], [`status`] |
//! | a finished run, to be used | [`finished`] |
//! | what it says of texts; its adapter for PEFT; a checkpoint with it merged in | [`predict`], [`export`], [`merge`] |
//! | a model to be trained from scratch | [`init_bart`] |
//! | an adapter of PEFT, to be used like a finished run | [`import`] |
//! | the signals that end them early | [`stop`] |
//! | the synthetic teacher task | [`planted`] |

pub mod check;
pub mod checkpoint;
pub mod experiment;
pub mod export;
pub mod finished;
pub mod grid;
pub mod import;
mod inference;
pub mod init_bart;
pub mod libtorch;
pub mod merge;
pub mod pattern_file;
pub mod plan;
pub mod planted;
pub mod predict;
pub mod provenance;
pub mod run_folder;
pub mod slurm;
pub mod status;
pub mod stop;
pub mod sweep;
pub mod trainer;
pub mod warm_start;
pub mod worker;
pub mod workspace;
