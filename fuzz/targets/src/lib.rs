//! What bytes of strangers reach, as functions of bytes: each reads its input or refuses it, and panics where a rule does not
//! hold for what was read. `make fuzz` gives them to libFuzzer; a test beside them gives them seeds and damaged seeds.

mod datasets;
mod memory;
pub mod mutate;
mod programs;
mod protocol;
pub mod seeds;
mod settlement;
mod tensors;
mod tokenizer;

use seeds::Seed;

/// One reader of foreign bytes.
pub struct Target {
    /// What it is called; a folder of `fuzz/seeds` may have the same name.
    pub name: &'static str,
    /// Inputs that are longer say nothing new, in bytes.
    pub input_bytes_max: usize,
    /// Reads an input, and checks what must hold for what was read. Was it read, rather than refused?
    read: fn(&[u8]) -> bool,
    /// What an input may take of memory at once, by its length in bytes.
    memory_max: fn(usize) -> usize,
    /// Inputs that are read, made anew from code and fixtures.
    made: fn() -> Vec<Seed>,
}

/// Every target.
pub const TARGETS: &[Target] = &[
    Target {
        name: "pt2",
        input_bytes_max: 32 << 10,
        read: programs::archive,
        // Deflate makes a thousand bytes of one at most, and JSON values take more room than their text.
        memory_max: |_| 512 << 20,
        made: programs::archives,
    },
    Target {
        name: "graph",
        input_bytes_max: 32 << 10,
        read: programs::graph,
        memory_max: |bytes| (2 << 20) + 64 * bytes,
        made: programs::graphs,
    },
    Target {
        name: "tensors",
        input_bytes_max: 4 << 10,
        read: tensors::file,
        memory_max: |bytes| (32 << 10) + 24 * bytes,
        made: tensors::files,
    },
    Target {
        name: "requests",
        input_bytes_max: 4 << 10,
        read: protocol::request,
        memory_max: |bytes| (64 << 10) + 64 * bytes,
        made: protocol::requests,
    },
    Target {
        name: "replies",
        input_bytes_max: 4 << 10,
        read: protocol::reply,
        memory_max: |bytes| (64 << 10) + 64 * bytes,
        made: protocol::replies,
    },
    Target {
        name: "receipt",
        input_bytes_max: 8 << 10,
        read: settlement::receipt,
        memory_max: |bytes| (64 << 10) + 64 * bytes,
        made: settlement::receipts,
    },
    Target {
        name: "leaf_file",
        input_bytes_max: 8 << 10,
        read: settlement::leaf_file,
        memory_max: |bytes| (64 << 10) + 64 * bytes,
        made: settlement::leaf_files,
    },
    Target {
        name: "tokenizer",
        input_bytes_max: 8 << 10,
        read: tokenizer::file_and_text,
        // A pattern of a few bytes may have automata of some MiB, and there may be eight of them.
        memory_max: |bytes| (256 << 20) + (16 << 10) * bytes,
        made: tokenizer::files_and_texts,
    },
    Target {
        name: "datasets",
        input_bytes_max: 8 << 10,
        read: datasets::file,
        // The wall around the child that reads them.
        memory_max: |_| 512 << 20,
        made: datasets::files,
    },
];

impl Target {
    /// The target of this name.
    #[must_use]
    pub fn named(name: &str) -> Option<&'static Self> {
        TARGETS.iter().find(|it| it.name == name)
    }

    /// Gives it an input. Was it read, rather than refused?
    ///
    /// # Panics
    /// Where a rule does not hold for what was read, or reading took more memory than it may.
    #[must_use]
    pub fn run(&self, input: &[u8]) -> bool {
        let (was_read, peak) = memory::peak_of(|| (self.read)(input));
        let max = (self.memory_max)(input.len());
        assert!(
            peak <= max,
            "{}: {} bytes took {peak} of memory, and may take {max}",
            self.name,
            input.len()
        );
        was_read
    }

    /// Inputs to begin with: those that are made, then those that are kept because something was wrong with them once.
    #[must_use]
    pub fn seeds(&self) -> Vec<Seed> {
        let mut seeds = (self.made)();
        seeds.extend(seeds::kept(self.name));
        seeds
    }
}

/// Gives the target of this name an input; what libFuzzer calls.
///
/// # Panics
/// As [`Target::run`] does, and where there is no such target.
pub fn run(name: &str, input: &[u8]) {
    let target = Target::named(name).expect("libFuzzer's programs name targets");
    // Either is well.
    let _was_read = target.run(input);
}
