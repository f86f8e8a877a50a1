//! The policy table of VERIFICATION.md §4.4, by the policy that the service runs.
//!
//! 200 workers do 500 results each in random order; a tenth of them cheat. Every row is the policy's code with other
//! parameters. What is simulated beside it: workers, the second run (a perfect detector), and the payment of what
//! the holdback lets go.

use comptoir_domain::{
    id::AttemptId,
    policy::{
        AuditPolicy, Checked, Draw,
        audit::{Decay, Earning, POLICY},
    },
    shuffle::shuffled,
};

const WORKERS: usize = 200;
const CHEATERS: usize = 20;
const RESULTS: u64 = 500;
const SEEDS: u64 = 5;
const SEEDS_F: f64 = 5.0;

/// When a cheater cheats.
#[derive(Debug, Clone, Copy)]
enum Cheat {
    /// With this chance, in millionths.
    Chance(u32),
    /// Never in the first hundred, always after.
    Sleeper,
}

/// What a run of one seed comes to, per accepted or attempted result.
#[derive(Debug, Clone, Copy, Default)]
struct Outcome {
    extra: f64,
    wrong_paid: f64,
    caught: f64,
}

#[derive(Default)]
struct Worker {
    number: u64,
    trusted: u32,
    barred: bool,
    unpaid: Vec<(u64, bool)>,
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

fn simulate(policy: &AuditPolicy, cheat: Cheat, seed: u64) -> Outcome {
    let cheats: Vec<usize> = shuffled(WORKERS, seed, 0).into_iter().take(CHEATERS).collect();
    let mut workers: Vec<Worker> = (0..WORKERS).map(|_| Worker::default()).collect();
    let mut chance = Chance(seed);
    let (mut done, mut extra, mut wrong_paid, mut caught) = (0_u32, 0_u32, 0_u32, 0_u32);
    let mut secret = [0; 32];
    secret[..8].copy_from_slice(&seed.to_le_bytes());
    for round in 1..=RESULTS {
        for place in shuffled(WORKERS, seed, round) {
            let worker = &mut workers[place];
            if worker.barred {
                continue;
            }
            worker.number += 1;
            done += 1;
            let wrong = cheats.contains(&place)
                && match cheat {
                    Cheat::Chance(ppm) => chance.hits(ppm),
                    Cheat::Sleeper => worker.number > 100,
                };
            let attempt = AttemptId(uuid::Uuid::from_u128((u128::from(round) << 64) | u128::try_from(place).unwrap()));
            let draw = Draw::of(policy, worker.trusted, &secret, (attempt, &[0; 32]));
            let checked = match (draw.is_audited(), wrong) {
                (false, _) => Checked::Unaudited,
                (true, false) => Checked::Confirmed,
                (true, true) => Checked::Refuted,
            };
            worker.trusted = policy.after(worker.trusted, checked);
            extra += u32::from(draw.is_audited());
            if checked == Checked::Refuted {
                // What is not paid yet is run again by others.
                extra += u32::try_from(policy.holdback.min(worker.number)).unwrap();
                worker.barred = true;
                worker.unpaid.clear();
                caught += 1;
                continue;
            }
            worker.unpaid.push((worker.number, wrong));
            let latest = worker.number;
            worker.unpaid.retain(|(number, wrong)| {
                let paid = policy.is_past_holdback(*number, latest);
                wrong_paid += u32::from(paid && *wrong);
                !paid
            });
        }
    }
    // The rest is paid once the dispute window has passed.
    let rest = workers.iter().flat_map(|worker| &worker.unpaid);
    wrong_paid += rest.map(|(_, wrong)| u32::from(*wrong)).sum::<u32>();
    Outcome {
        extra: f64::from(extra) / f64::from(done),
        wrong_paid: f64::from(wrong_paid) / f64::from(done),
        caught: f64::from(caught),
    }
}

/// Mean of the seeds.
fn mean(policy: &AuditPolicy, cheat: Cheat) -> Outcome {
    let mut sum = Outcome::default();
    for seed in 1..=SEEDS {
        let outcome = simulate(policy, cheat, seed);
        sum.extra += outcome.extra / SEEDS_F;
        sum.wrong_paid += outcome.wrong_paid / SEEDS_F;
        sum.caught += outcome.caught / SEEDS_F;
    }
    sum
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
    decay: Decay::Inverse { offset: 0 },
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

/// One cell: the table's figure and how far five seeds may stray from it, which is four standard errors of the
/// difference of two such means.
fn assert_near(found: f64, (table, noise): (f64, f64), what: &str) {
    assert!((found - table).abs() <= noise, "{what}: {found:.3e}, the table says {table:.3e} ± {noise:.0e}");
}

#[test]
fn print_table() {
    let rows = [
        ("none", spot(0, 0)), ("quorum", spot(1_000_000, 0)), ("spot2", spot(20_000, 0)), ("spot5", spot(50_000, 0)),
        ("spot5h50", spot(50_000, 50)), ("boinc", BOINC), ("adaptive5", adaptive(50_000, 0)), ("adaptive5h50", adaptive(50_000, 50)),
        ("adaptive10h50", adaptive(100_000, 50)), ("product", POLICY),
    ];
    for (name, policy) in rows {
        for (cheat, label) in [(ALWAYS, "100"), (FIFTH, "20"), (Cheat::Sleeper, "sleeper"), (FIFTIETH, "2")] {
            let it = mean(&policy, cheat);
            let each: Vec<_> = (1..=SEEDS).map(|seed| simulate(&policy, cheat, seed).wrong_paid).collect();
            println!("{name} {label}: extra {:.4} wrong {:.2e} caught {:.1}  {each:.2e?}", it.extra, it.wrong_paid, it.caught);
        }
    }
}
