//! Models as data: programs exported by `torch.export`, read, checked and priced without running anything.

pub mod graph;
pub mod symbolic;
