//! Merkle trees as the contract checks them, built as a queue: the sorted leaves wait in line; the two first leave it, and
//! their parent joins its end, until one is left. That is the tree of `@openzeppelin/merkle-tree`, built the other way round
//! than by filling an array from its end.

use crate::{hash::keccak, value::Hash};

/// A tree over some leaves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tree {
    /// Everybody that ever stood in line, in order: the pair at `2k` has its parent at `leaves + k`.
    line: Vec<Hash>,
    leaves: usize,
}

/// The root of a tree without leaves.
#[must_use]
pub fn empty_root() -> Hash {
    keccak(&[b"comptoir.empty"])
}

impl Tree {
    /// Builds the tree of some leaves, in whatever order they come.
    #[must_use]
    pub fn new(mut leaves: Vec<Hash>) -> Self {
        leaves.sort_unstable();
        let count = leaves.len();
        let mut line = leaves;
        let mut front = 0;
        while line.len() > front + 1 {
            line.push(parent(line[front], line[front + 1]));
            front += 2;
        }
        Self {
            line,
            leaves: count,
        }
    }

    /// The root.
    #[must_use]
    pub fn root(&self) -> Hash {
        self.line.last().copied().unwrap_or_else(empty_root)
    }

    /// What leads from a leaf to the root; `None` when the tree has no such leaf.
    #[must_use]
    pub fn proof(&self, leaf: Hash) -> Option<Vec<Hash>> {
        let mut place = self.line[..self.leaves].binary_search(&leaf).ok()?;
        let mut proof = Vec::new();
        while place + 1 < self.line.len() {
            proof.push(self.line[place ^ 1]);
            place = self.leaves + place / 2;
        }
        Some(proof)
    }
}

/// The parent of two nodes: the smaller is hashed first.
#[must_use]
pub fn parent(one: Hash, other: Hash) -> Hash {
    keccak(&[&one.min(other).0, &one.max(other).0])
}
