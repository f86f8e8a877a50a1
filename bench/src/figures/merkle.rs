//! Trees of leaves, beside the hashes that they are made of and a crate that many use.

use std::{hint::black_box, time::Instant};

use alloy_primitives::{B256, keccak256};
use anyhow::{Context as _, ensure};
use comptoir_domain::settlement::merkle::Tree;
use rs_merkle::{Hasher, MerkleTree};

use crate::{Setting, figure::Rounds};

/// Leaves of a tree.
const LEAVES: u32 = 1_000_000;

/// The same hash for the peer.
#[derive(Clone)]
struct Keccak;

impl Hasher for Keccak {
    type Hash = [u8; 32];

    fn hash(data: &[u8]) -> [u8; 32] {
        keccak256(data).0
    }
}

fn leaves() -> Vec<B256> {
    (0..LEAVES)
        .map(|number| keccak256(number.to_be_bytes()))
        .collect()
}

fn seconds<T>(work: impl FnOnce() -> T) -> f64 {
    let began = Instant::now();
    black_box(work());
    began.elapsed().as_secs_f64()
}

/// Beside as many keccak calls on pairs.
pub fn beside_keccak(setting: &Setting) -> Rounds {
    let leaves = leaves();
    let mut rounds = Rounds::default();
    for _ in 0..setting.rounds {
        let calls = seconds(|| {
            let mut pair = [0; 64];
            for _ in 1..LEAVES {
                let hash = keccak256(black_box(&pair));
                pair[..32].copy_from_slice(hash.as_slice());
            }
            pair
        });
        let ours = seconds(|| Tree::new(black_box(&leaves)).root());
        rounds.note(ours * 1e3, calls * 1e3);
    }
    rounds
}

/// The peer's time beside ours.
pub fn beside_peer(setting: &Setting) -> anyhow::Result<Rounds> {
    let leaves = leaves();
    let theirs: Vec<[u8; 32]> = leaves.iter().map(|leaf| leaf.0).collect();
    let mut rounds = Rounds::default();
    for _ in 0..setting.rounds {
        let began = Instant::now();
        let root = MerkleTree::<Keccak>::from_leaves(black_box(&theirs)).root();
        let peer = began.elapsed().as_secs_f64();
        ensure!(root.context("a root")? != [0; 32], "a root");
        let ours = seconds(|| Tree::new(black_box(&leaves)).root());
        rounds.note(peer * 1e3, ours * 1e3);
    }
    Ok(rounds)
}
