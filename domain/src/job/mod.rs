//! What a job is, the states it passes, and why it may fail.

pub mod spec;
pub mod state;
pub mod waiting;

pub use spec::{
    InferenceSpec, InvalidSpec, JobSpec, Loss, Optimizer, Schedule, TensorRef, TrainingSpec,
};
pub use state::{Cause, Device, JobState, ReplicaState, Tier};
