//! What follows for sampled training that is audited piece by piece.

use comptoir_domain::{
    digest::Sha256,
    job::{JobSpec, TrainingSpec},
    replay::{self, Next, Piece, Replayed, Whole},
    seal::{OUTPUT_CHECKPOINT, OUTPUT_WEIGHTS},
    verdict::Ruling,
};
use comptoir_store::{
    draws::MadeDraw,
    verdicts::{Case, ShownResult},
};

/// What follows from the runs and replays so far. `None` where results are compared as wholes: inference, a run of one
/// piece, one that left no checkpoints, one that was not drawn.
pub(crate) fn next(case: &Case, draw: Option<&MadeDraw>) -> Option<Next> {
    let (spec, drawn) = training(case).zip(draw.filter(|made| made.draw.is_audited())?.piece)?;
    let pieces = usize::try_from(replay::pieces(spec, case.meter.rows())).ok()?;
    if pieces < 2 {
        return None;
    }
    let placed = || case.results.iter().enumerate();
    let mut wholes = placed().filter(|(_, result)| result.replay.is_none());
    let first = whole(case, pieces, wholes.next()?)?;
    let second = wholes.next().map(|result| whole(case, pieces, result));
    // A second run without checkpoints cannot be told apart piece by piece.
    let second = match second {
        Some(None) => return Some(Next::Ruled(Ruling::Unstable)),
        found => found.flatten(),
    };
    let replays: Vec<Replayed> = placed()
        .filter_map(|(place, result)| {
            Some(Replayed {
                place,
                piece: usize::try_from(result.replay?.number).ok()?,
                end: end_of(result)?,
            })
        })
        .collect();
    let drawn = usize::try_from(drawn).ok()?;
    Some(replay::rule(&first, second.as_ref(), &replays, drawn))
}

/// The piece of the job with this number.
pub(crate) fn piece(case: &Case, number: usize) -> Option<Piece> {
    let spec = training(case)?;
    replay::piece(spec, case.meter.rows(), u32::try_from(number).ok()?)
}

const fn training(case: &Case) -> Option<&TrainingSpec> {
    match &case.spec {
        JobSpec::Training(spec) => Some(spec),
        JobSpec::Inference(_) => None,
    }
}

/// A whole run with what each of its pieces ended with, if it left all the checkpoints between them.
fn whole(case: &Case, pieces: usize, (place, result): (usize, &ShownResult)) -> Option<Whole> {
    let chain = case.chains.get(&result.replica)?;
    let mut ends = chain.get(..pieces.checked_sub(1)?)?.to_vec();
    ends.push(*result.outputs.get(OUTPUT_WEIGHTS)?);
    Some(Whole { place, ends })
}

fn end_of(result: &ShownResult) -> Option<Sha256> {
    let outputs = &result.outputs;
    let end = outputs.get(OUTPUT_CHECKPOINT);
    end.or_else(|| outputs.get(OUTPUT_WEIGHTS)).copied()
}
