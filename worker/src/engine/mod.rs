//! Runs jobs on libtorch, each in a child process of its own, and hosts models in children that stay.

pub mod checkpoint;
pub mod child;
pub mod failure;
pub mod files;
pub mod host;
pub mod infer;
pub mod job;
pub mod launch;
mod layout;
pub mod message;
pub mod objective;
pub mod optimizer;
pub mod plan;
mod planner;
mod process;
pub mod rows;
pub mod runner;
pub mod schedule;
pub mod sealed;
pub mod state;
pub mod train;
mod warm;

pub use comptoir_sandbox::limits;

pub use child::{Context, Stop};
pub use failure::{Code, Failure};
pub use host::{Host, HostTask};
pub use job::{Handle, Job};
pub use launch::Launcher;
pub use limits::{ChildLimits, Limits};
pub use message::{Description, EpochMetrics, Event, JobTask, Output, Segment, Task};
