//! Training is audited piece by piece: an auditor goes on from one of the worker's checkpoints to the next, and must come
//! to the same bits. Where that fails, another owner runs all of it; the first piece at which two runs part is replayed
//! from where they still agree, and decides.

use crate::{
    digest::Sha256,
    job::TrainingSpec,
    segment::steps_in_all,
    verdict::{Ruling, VerdictKind},
};

/// Most optimizer steps between two checkpoints of a sampled training job: what honest machines of one class may differ
/// by over so few steps would still be told from a cheat.
pub const PIECE_STEPS_MAX: u32 = 10;

/// A part of a run: from a checkpoint, or the start, to the next one, or the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// Its number.
    pub number: u32,
    /// Optimizer steps done at its start.
    pub from: u64,
    /// Optimizer steps done at its end.
    pub until: u64,
}

/// How many pieces a run has.
#[must_use]
pub fn pieces(spec: &TrainingSpec, rows: u64) -> u32 {
    let pieces = steps_in_all(spec, rows).div_ceil(u64::from(spec.segment_steps.max(1)));
    u32::try_from(pieces).unwrap_or(u32::MAX)
}

/// A piece of a run. `None` past its end.
#[must_use]
pub fn piece(spec: &TrainingSpec, rows: u64, number: u32) -> Option<Piece> {
    let from = u64::from(number).checked_mul(u64::from(spec.segment_steps.max(1)))?;
    let in_all = steps_in_all(spec, rows);
    let until = from.saturating_add(u64::from(spec.segment_steps.max(1)));
    (from < in_all).then_some(Piece {
        number,
        from,
        until: until.min(in_all),
    })
}

/// A run of all of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Whole {
    /// Its place among the results.
    pub place: usize,
    /// What each piece ended with: checkpoints, and the trained weights last.
    pub ends: Vec<Sha256>,
}

/// A run of one piece, from what a whole run had at its start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Replayed {
    /// Its place among the results.
    pub place: usize,
    /// Which piece.
    pub piece: usize,
    /// What it ended with.
    pub end: Sha256,
}

/// What follows from the runs so far.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    /// As for results that are compared as wholes.
    Ruled(Ruling),
    /// Another owner replays this piece of the first run.
    Replay(usize),
    /// Another owner runs all of it.
    Whole,
}

/// Rules on one or two whole runs of equally many pieces and the replays between them; `drawn` is the piece that the
/// audit begins with.
#[must_use]
pub fn rule(first: &Whole, second: Option<&Whole>, replays: &[Replayed], drawn: usize) -> Next {
    let results = 1 + usize::from(second.is_some()) + replays.len();
    let accept = |reference: usize, rejected: &[usize]| {
        Next::Ruled(Ruling::Accept {
            kind: VerdictKind::Bitwise,
            reference,
            accepted: (0..results).map(|it| !rejected.contains(&it)).collect(),
        })
    };
    let confirms = |run: &Whole, it: &Replayed| run.ends.get(it.piece) == Some(&it.end);
    let Some(second) = second else {
        return match replays.first() {
            None => Next::Replay(drawn),
            Some(replay) if confirms(first, replay) => accept(first.place, &[]),
            Some(_) => Next::Whole,
        };
    };
    let refuted = |keep: &dyn Fn(&Replayed) -> bool| -> Vec<usize> {
        let wrong = replays.iter().filter(|it| !keep(it));
        wrong.map(|it| it.place).collect()
    };
    let parted = first
        .ends
        .iter()
        .zip(&second.ends)
        .position(|(a, b)| a != b);
    let Some(parted) = parted else {
        return accept(first.place, &refuted(&|it| confirms(first, it)));
    };
    let Some(decider) = replays.iter().find(|it| it.piece == parted) else {
        return Next::Replay(parted);
    };
    // Up to where they part, both runs say the same of a piece; beyond, a replay speaks of the first run alone.
    let early = |it: &Replayed| it.piece >= parted || confirms(first, it);
    if confirms(second, decider) {
        let mut rejected = refuted(&early);
        rejected.push(first.place);
        accept(second.place, &rejected)
    } else if confirms(first, decider)
        && replays
            .iter()
            .all(|it| confirms(first, it) || it.piece < parted)
    {
        let mut rejected = refuted(&early);
        rejected.push(second.place);
        accept(first.place, &rejected)
    } else {
        Next::Ruled(Ruling::Unstable)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whole(place: usize, ends: &[u8]) -> Whole {
        let ends = ends.iter().map(|end| Sha256([*end; 32])).collect();
        Whole { place, ends }
    }

    fn replay(place: usize, piece: usize, end: u8) -> Replayed {
        let end = Sha256([end; 32]);
        Replayed { place, piece, end }
    }

    fn accepted(reference: usize, accepted: &[bool]) -> Next {
        Next::Ruled(Ruling::Accept {
            kind: VerdictKind::Bitwise,
            reference,
            accepted: accepted.to_vec(),
        })
    }

    #[test]
    fn one_confirmed_piece_is_enough_and_one_refuted_asks_for_all_of_it() {
        let run = whole(0, &[1, 2, 3]);
        assert_eq!(rule(&run, None, &[], 1), Next::Replay(1));
        assert_eq!(
            rule(&run, None, &[replay(1, 1, 2)], 1),
            accepted(0, &[true, true])
        );
        assert_eq!(rule(&run, None, &[replay(1, 1, 9)], 1), Next::Whole);
    }

    #[test]
    fn an_auditor_that_two_whole_runs_contradict_is_wrong() {
        let (run, again) = (whole(0, &[1, 2, 3]), whole(2, &[1, 2, 3]));
        assert_eq!(
            rule(&run, Some(&again), &[replay(1, 1, 9)], 1),
            accepted(0, &[true, false, true])
        );
    }

    #[test]
    fn where_two_runs_part_a_replay_from_what_they_share_decides() {
        // The first run was made up from its second piece on, and the audit drew the third.
        let (forged, honest) = (whole(0, &[1, 7, 8]), whole(2, &[1, 2, 3]));
        let audit = replay(1, 2, 9);
        assert_eq!(rule(&forged, Some(&honest), &[audit], 2), Next::Replay(1));
        let decided = rule(&forged, Some(&honest), &[audit, replay(3, 1, 2)], 2);
        assert_eq!(decided, accepted(2, &[false, true, true, true]));
        // The audit had drawn that very piece: nobody else is needed.
        let decided = rule(&forged, Some(&honest), &[replay(1, 1, 2)], 1);
        assert_eq!(decided, accepted(2, &[false, true, true]));
        // An audit of an earlier piece, on which both agree, was wrong.
        let wrong = [replay(1, 0, 9), replay(3, 1, 2)];
        assert_eq!(
            rule(&forged, Some(&honest), &wrong, 0),
            accepted(2, &[false, false, true, true])
        );
    }

    #[test]
    fn a_second_run_may_be_the_forged_one() {
        let (honest, forged) = (whole(0, &[1, 2, 3]), whole(2, &[1, 7, 8]));
        let replays = [replay(1, 0, 9), replay(3, 1, 2)];
        assert_eq!(
            rule(&honest, Some(&forged), &replays, 0),
            accepted(0, &[true, false, false, true])
        );
    }

    #[test]
    fn where_nobody_agrees_nobody_is_blamed() {
        let (one, two) = (whole(0, &[1, 2]), whole(2, &[1, 3]));
        let unstable = Next::Ruled(Ruling::Unstable);
        assert_eq!(rule(&one, Some(&two), &[replay(1, 1, 9)], 1), unstable);
        // The first run is confirmed where they part, and refuted at a later piece.
        let (one, two) = (whole(0, &[1, 2]), whole(2, &[5, 6]));
        assert_eq!(
            rule(&one, Some(&two), &[replay(1, 1, 9), replay(3, 0, 1)], 1),
            unstable
        );
    }
}
