//! The policy table of VERIFICATION.md §4.4, by the policy that the service runs.
//!
//! 200 workers do 500 results each; a tenth of them cheat. Every row is the policy's code with other parameters. What is
//! simulated beside it: workers, the second run (a perfect detector), and the payment of what the holdback lets go.

use std::collections::VecDeque;

use comptoir_domain::{
    id::AttemptId,
    job::Tier,
    policy::{
        AuditPolicy, Checked, Draw,
        audit::{Decay, Earning, POLICY},
    },
};

const WORKERS: u32 = 200;
const CHEATERS: u32 = 20;
const RESULTS: u64 = 500;
const SEEDS: u32 = 5;

/// When a cheater cheats.
#[derive(Debug, Clone, Copy)]
enum Cheat {
    /// With this chance, in millionths.
    Chance(u32),
    /// Never in the first hundred, always after.
    Sleeper,
}

/// What a run of one seed comes to, per result.
#[derive(Debug, Clone, Copy, Default)]
struct Outcome {
    extra: f64,
    wrong_paid: f64,
    caught: f64,
}

/// What workers did and cost.
#[derive(Default)]
struct Tally {
    done: u32,
    extra: u32,
    wrong_paid: u32,
    caught: u32,
}

/// SplitMix64, for what is not the policy's: when cheaters cheat.
struct Chance(u64);

impl Chance {
    fn hits(&mut self, ppm: u32) -> bool {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % 1_000_000 < u64::from(ppm)
    }
}

/// One worker, from its first result to its last or until it is caught. Workers do not meet: their order does not matter.
fn work(policy: &AuditPolicy, cheats: Option<Cheat>, place: u32, seed: u32, tally: &mut Tally) {
    let mut chance = Chance((u64::from(seed) << 32) | u64::from(place));
    let mut secret = [0; 32];
    secret[..4].copy_from_slice(&seed.to_le_bytes());
    let (mut trusted, mut unpaid) = (0, VecDeque::new());
    for number in 1..=RESULTS {
        tally.done += 1;
        let wrong = match cheats {
            None => false,
            Some(Cheat::Chance(ppm)) => chance.hits(ppm),
            Some(Cheat::Sleeper) => number > 100,
        };
        let attempt = (u128::from(number) << 64) | u128::from(place);
        let attempt = AttemptId(uuid::Uuid::from_u128(attempt));
        let draw = Draw::of(policy, trusted, &secret, (attempt, &[0; 32]));
        let checked = match (draw.is_audited(), wrong) {
            (false, _) => Checked::Unaudited,
            (true, false) => Checked::Confirmed,
            (true, true) => Checked::Refuted,
        };
        trusted = policy.after(trusted, checked);
        tally.extra += u32::from(draw.is_audited());
        if checked == Checked::Refuted {
            // What is not paid yet is run again by others.
            tally.extra += u32::try_from(policy.holdback.min(number)).expect("a holdback is short");
            tally.caught += 1;
            return;
        }
        unpaid.push_back((number, wrong));
        while let Some((first, wrong)) = unpaid.front().copied()
            && policy.is_past_holdback(first, number)
        {
            tally.wrong_paid += u32::from(wrong);
            unpaid.pop_front();
        }
    }
    // The rest is paid once the dispute window has passed.
    tally.wrong_paid += unpaid
        .iter()
        .map(|(_, wrong)| u32::from(*wrong))
        .sum::<u32>();
}

fn simulate(policy: &AuditPolicy, cheat: Cheat, seed: u32) -> Outcome {
    let mut tally = Tally::default();
    for place in 0..WORKERS {
        let cheats = (place < CHEATERS).then_some(cheat);
        work(policy, cheats, place, seed, &mut tally);
    }
    let share = |part: u32| f64::from(part) / f64::from(tally.done);
    Outcome {
        extra: share(tally.extra),
        wrong_paid: share(tally.wrong_paid),
        caught: f64::from(tally.caught),
    }
}

/// Mean of the seeds.
fn mean(policy: &AuditPolicy, cheat: Cheat) -> Outcome {
    let mut mean = Outcome::default();
    for seed in 1..=SEEDS {
        let outcome = simulate(policy, cheat, seed);
        mean.extra += outcome.extra / f64::from(SEEDS);
        mean.wrong_paid += outcome.wrong_paid / f64::from(SEEDS);
        mean.caught += outcome.caught / f64::from(SEEDS);
    }
    mean
}

const ALWAYS: Cheat = Cheat::Chance(1_000_000);
const FIFTH: Cheat = Cheat::Chance(200_000);
const FIFTIETH: Cheat = Cheat::Chance(20_000);

const fn spot(floor_ppm: u32, holdback: u64) -> AuditPolicy {
    AuditPolicy {
        certain_until: 0,
        decay: Decay::Floor,
        floor_ppm,
        earning: Earning::Confirmed,
        holdback,
    }
}

const BOINC: AuditPolicy = AuditPolicy {
    certain_until: 10,
    decay: Decay::Inverse { offset: 10 },
    floor_ppm: 0,
    earning: Earning::Unrefuted,
    holdback: 0,
};

/// The policy without its certain start, as the table has it.
const fn adaptive(floor_ppm: u32, holdback: u64) -> AuditPolicy {
    AuditPolicy {
        certain_until: 0,
        floor_ppm,
        holdback,
        ..POLICY
    }
}

/// A figure of the table, and how far the mean of five other seeds may stray from it: four standard errors of the
/// difference of two such means, by twenty runs of the table's own simulator.
type Figure = (f64, f64);

const ZERO: Figure = (0.0, 0.0);

/// A row of the table: what is run again per result, lowest and highest over the columns, and the wrong results that are
/// paid when cheats cheat always, at a fifth of their results, and as sleepers.
type Row = (&'static str, AuditPolicy, (f64, f64), [Figure; 3]);

/// How far a rate of extra runs may stray beyond the table's range.
const EXTRA_NOISE: f64 = 0.002;

#[rustfmt::skip]
const TABLE: [Row; 8] = [
    ("none", spot(0, 0), (0.0, 0.0), [(1.0e-1, 1e-9), (2.0e-2, 9e-4), (8.0e-2, 1e-9)]),
    ("quorum of 2", spot(1_000_000, 0), (1.0, 1.0), [ZERO; 3]),
    ("spot 2 %", spot(20_000, 0), (0.02, 0.02), [(1.06e-2, 8.1e-3), (8.7e-3, 3.1e-3), (1.0e-2, 7.0e-3)]),
    ("spot 5 %", spot(50_000, 0), (0.05, 0.05), [(3.7e-3, 2.2e-3), (4.5e-3, 1.8e-3), (4.4e-3, 2.5e-3)]),
    ("spot 5 % + holdback 50", spot(50_000, 50), (0.05, 0.06), [(1.35e-4, 8.4e-4), (2.7e-3, 1.8e-3), (4.6e-4, 9e-4)]),
    ("BOINC adaptive", BOINC, (0.028, 0.029), [ZERO, (1.1e-3, 2.2e-3), (3.7e-2, 1.2e-2)]),
    ("adaptive, floor 5 %, holdback 50", adaptive(50_000, 50), (0.070, 0.081), [ZERO, (4.0e-4, 7.1e-4), (2.4e-5, 1.5e-4)]),
    ("adaptive, floor 10 %, holdback 50", adaptive(100_000, 50), (0.11, 0.12), [ZERO, (2.1e-4, 5.4e-4), (0.0, 5e-5)]),
];

fn assert_near(found: f64, (figure, noise): Figure, what: &str) {
    let apart = (found - figure).abs();
    assert!(
        apart <= noise,
        "{what}: {found:.2e}, the table says {figure:.2e} and strays by {noise:.1e}"
    );
}

#[test]
fn the_policies_of_the_table_do_what_it_says() {
    for (name, policy, (least, most), wrong_paid) in TABLE {
        for (cheat, figure) in [ALWAYS, FIFTH, Cheat::Sleeper].into_iter().zip(wrong_paid) {
            let found = mean(&policy, cheat);
            assert_near(found.wrong_paid, figure, &format!("{name}, {cheat:?}"));
            let range = least - EXTRA_NOISE..=most + EXTRA_NOISE;
            assert!(range.contains(&found.extra), "{name}, {cheat:?}: {found:?}");
        }
    }
}

#[test]
fn without_a_floor_not_all_sleepers_are_caught() {
    let boinc = mean(&BOINC, Cheat::Sleeper);
    assert!((12.0..19.0).contains(&boinc.caught), "{boinc:?}");
    let ours = mean(&POLICY, Cheat::Sleeper);
    assert_near(ours.caught, (20.0, 0.0), "sleepers caught");
}

#[test]
fn cheating_at_two_results_of_a_hundred_mostly_goes_through() {
    for policy in [spot(20_000, 0), BOINC, adaptive(50_000, 50), POLICY] {
        let found = mean(&policy, FIFTIETH);
        let goes_through = (6e-4..2e-3).contains(&found.wrong_paid);
        assert!(goes_through && found.caught < 16.0, "{policy:?}: {found:?}");
    }
}

/// The price of the tier `sampled` adds what audits take of a worker's first six hundred results, which is more than what
/// they take later.
#[test]
fn the_policy_of_the_service_lets_no_more_through_than_the_table_s() {
    let figures = [ZERO, (0.0, 2e-4), (0.0, 1.5e-4)];
    for (cheat, figure) in [ALWAYS, FIFTH, Cheat::Sleeper].into_iter().zip(figures) {
        let found = mean(&POLICY, cheat);
        assert_near(found.wrong_paid, figure, &format!("{cheat:?}"));
        assert!((0.10..0.13).contains(&found.extra), "{cheat:?}: {found:?}");
    }
    assert!(POLICY.rate_ppm(1_000) < Tier::Sampled.audit_ppm());
}
