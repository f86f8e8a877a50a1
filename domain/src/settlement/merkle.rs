//! A Merkle tree in the layout of `@openzeppelin/merkle-tree`'s `SimpleMerkleTree`: leaves sorted, a flat array with the root first, and
//! pairs sorted before they are hashed, so that a proof needs no directions.

use alloy_primitives::{B256, keccak256};

/// A tree over leaves that are hashes already.
#[derive(Debug, Clone)]
pub struct Tree {
    /// The children of node `i` are `2i + 1` and `2i + 2`.
    nodes: Vec<B256>,
    /// Where each leaf stands, in the order it was given.
    places: Vec<usize>,
}

/// The root of a tree without leaves.
#[must_use]
pub fn empty_root() -> B256 {
    keccak256("comptoir.empty")
}

impl Tree {
    /// Builds the tree of some leaves.
    #[must_use]
    pub fn new(leaves: &[B256]) -> Self {
        let size = (2 * leaves.len()).saturating_sub(1);
        let mut nodes = vec![B256::ZERO; size];
        let mut places = vec![0; leaves.len()];
        for (rank, index) in sorted(leaves).enumerate() {
            nodes[size - 1 - rank] = leaves[index];
            places[index] = size - 1 - rank;
        }
        for parent in (0..leaves.len().saturating_sub(1)).rev() {
            nodes[parent] = pair(nodes[2 * parent + 1], nodes[2 * parent + 2]);
        }
        Self { nodes, places }
    }

    /// The root; [`empty_root`] without leaves.
    #[must_use]
    pub fn root(&self) -> B256 {
        self.nodes.first().copied().unwrap_or_else(empty_root)
    }

    /// The proof of the leaf that was given at `index`; `None` when there were not so many.
    #[must_use]
    pub fn proof(&self, index: usize) -> Option<Vec<B256>> {
        let mut place = *self.places.get(index)?;
        let mut proof = Vec::new();
        while place > 0 {
            // A left child has an odd place, and its sibling comes next.
            proof.push(self.nodes[if place % 2 == 1 { place + 1 } else { place - 1 }]);
            place = (place - 1) / 2;
        }
        Some(proof)
    }
}

/// Does the proof lead from the leaf to the root?
#[must_use]
pub fn verify(root: B256, leaf: B256, proof: &[B256]) -> bool {
    proof
        .iter()
        .fold(leaf, |node, sibling| pair(node, *sibling))
        == root
}

/// The places of leaves in rising order. Hashes differ in their first bytes, which are compared as one number; what is
/// behind them is looked at only where those are equal.
fn sorted(leaves: &[B256]) -> impl Iterator<Item = usize> {
    let head = |leaf: &B256| {
        let (head, _) = leaf.split_first_chunk().expect("32 bytes hold 8");
        u64::from_be_bytes(*head)
    };
    let mut sorted: Vec<(u64, usize)> = leaves.iter().map(head).zip(0..).collect();
    sorted.sort_unstable_by(|(a, left), (b, right)| {
        a.cmp(b)
            .then_with(|| leaves[*left].cmp(&leaves[*right]))
            .then_with(|| left.cmp(right))
    });
    sorted.into_iter().map(|(_, place)| place)
}

fn pair(a: B256, b: B256) -> B256 {
    let (low, high) = if a <= b { (a, b) } else { (b, a) };
    let mut both = [0; 64];
    both[..32].copy_from_slice(low.as_slice());
    both[32..].copy_from_slice(high.as_slice());
    keccak256(both)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_tree_without_leaves_has_the_agreed_root_and_proves_nothing() {
        let tree = Tree::new(&[]);
        assert_eq!(tree.root(), keccak256("comptoir.empty"));
        assert_eq!(tree.proof(0), None);
    }

    #[test]
    fn trees_and_proofs_are_those_of_openzeppelin() {
        #[derive(serde::Deserialize)]
        struct Vector {
            root: B256,
            leaves: Vec<B256>,
            proofs: Vec<Vec<B256>>,
        }
        let vectors: Vec<Vector> =
            serde_json::from_str(include_str!("../../../contracts/test/vectors/merkle.json"))
                .unwrap();
        assert!(vectors.len() >= 8);
        for Vector {
            root,
            leaves,
            proofs,
        } in vectors
        {
            let tree = Tree::new(&leaves);
            assert_eq!(tree.root(), root);
            for (index, proof) in proofs.iter().enumerate() {
                assert_eq!(tree.proof(index).as_ref(), Some(proof));
            }
        }
    }

    #[test]
    fn leaves_that_begin_alike_are_sorted_by_what_follows() {
        let leaf = |last: u8| {
            let mut bytes = [7; 32];
            bytes[31] = last;
            B256::from(bytes)
        };
        let leaves = [leaf(3), leaf(1), leaf(2), leaf(1)];
        let places: Vec<usize> = sorted(&leaves).collect();
        assert_eq!(places, [1, 3, 2, 0]);
    }

    proptest! {
        #[test]
        fn every_leaf_has_a_proof_and_nothing_else_has(
            seeds in prop::collection::vec(any::<u32>(), 1..70), stranger: u64,
        ) {
            let leaves: Vec<B256> = seeds.iter().map(|seed| keccak256(seed.to_be_bytes())).collect();
            let tree = Tree::new(&leaves);
            for (index, leaf) in leaves.iter().enumerate() {
                let proof = tree.proof(index).unwrap();
                prop_assert!(verify(tree.root(), *leaf, &proof));
                prop_assert!(!verify(tree.root(), keccak256(stranger.to_be_bytes()), &proof));
                if let Some((_, rest)) = proof.split_first() {
                    prop_assert!(!verify(tree.root(), *leaf, rest));
                }
            }
        }

        #[test]
        fn the_root_does_not_depend_on_the_order_of_the_leaves(
            seeds in prop::collection::hash_set(any::<u32>(), 1..40),
        ) {
            let mut leaves: Vec<B256> = seeds.iter().map(|seed| keccak256(seed.to_be_bytes())).collect();
            let root = Tree::new(&leaves).root();
            leaves.reverse();
            prop_assert_eq!(Tree::new(&leaves).root(), root);
        }
    }
}
