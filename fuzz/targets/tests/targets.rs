//! Every target over its seeds and over damaged seeds, the same at each run and without a special compiler.

#![expect(clippy::unwrap_used, reason = "what a test cannot do without fails it")]

use std::{
    env,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    time::{Duration, Instant},
};

use comptoir_fuzz_targets::{
    Target,
    mutate::{Numbers, damaged},
};

/// Damaged inputs of each target, unless `FUZZ_MUTATIONS` says how many.
const MUTATIONS: u64 = 10_000;
/// An input that takes longer hangs, whatever the machine does beside.
const HANGS_AFTER: Duration = Duration::from_secs(20);

/// Gives the target an input, and shows it where that goes wrong. Was it read?
fn run(target: &Target, input: &[u8], what: &str) -> bool {
    let start = Instant::now();
    let ran = catch_unwind(AssertUnwindSafe(|| target.run(input)));
    let was_read = ran.unwrap_or_else(|panic| {
        eprintln!("{} with {what}: {}", target.name, input.escape_ascii());
        resume_unwind(panic);
    });
    let took = start.elapsed();
    assert!(
        took < HANGS_AFTER,
        "{} with {what} took {took:?}",
        target.name
    );
    was_read
}

fn exercise(name: &str) {
    let target = Target::named(name).unwrap();
    let seeds = target.seeds();
    let read = seeds.iter().map(|it| run(target, &it.bytes, &it.name));
    let read = read.filter(|was_read| *was_read).count();
    assert!(read > 1, "{name} reads {read} of {} seeds", seeds.len());
    let count = env::var("FUZZ_MUTATIONS").map_or(MUTATIONS, |it| it.parse().unwrap());
    for number in 0..count {
        let input = damaged(&seeds, &mut Numbers::from(number), target.input_bytes_max);
        run(target, &input, &format!("mutation {number}"));
    }
}

macro_rules! each {
    ($($name:ident)+) => {
        $(#[test]
        fn $name() {
            exercise(stringify!($name).split_once("_reads_").unwrap().0);
        })+
        #[test]
        fn every_target_has_its_test() {
            let tested = [$(stringify!($name).split_once("_reads_").unwrap().0),+];
            let all: Vec<_> = comptoir_fuzz_targets::TARGETS.iter().map(|it| it.name).collect();
            assert_eq!(all, tested);
        }
    };
}

each! {
    pt2_reads_or_refuses_whatever_comes
    graph_reads_or_refuses_whatever_comes
    tensors_reads_or_refuses_whatever_comes
    requests_reads_or_refuses_whatever_comes
    replies_reads_or_refuses_whatever_comes
    receipt_reads_or_refuses_whatever_comes
    leaf_file_reads_or_refuses_whatever_comes
    tokenizer_reads_or_refuses_whatever_comes
    datasets_reads_or_refuses_whatever_comes
}
