//! Batch inference: every row through the program once, in order.

use std::time::Instant;

use comptoir_domain::{job::InferenceSpec, seal::OUTPUT_TENSORS};
use tch::{Device, Tensor};

use super::{
    child::{Context, Stop},
    failure::{Code, Failure},
    files,
    message::{Event, JobTask, Output},
    plan::Phase,
    rows::{self, Rows},
    runner::Runner,
    state::State,
    train::PROGRESS_INTERVAL,
};
use crate::aten::AtenError;

/// Runs an inference job to its end.
pub fn infer(
    spec: &InferenceSpec,
    job: &JobTask,
    context: &mut Context<'_>,
) -> Result<Vec<Output>, Stop> {
    let _guard = tch::no_grad_guard();
    let mut archive = rows::open_program(job, &job.spec)?;
    let program = archive.program().clone();
    let mut runner = Runner::new(&program, Phase::Inference, context.device)?;
    let mut state = State::load(&mut archive, context.device)?;
    if let Some(weights) = spec.weights {
        state.apply(&mut rows::open(job, weights)?)?;
    }
    runner.attach(&state)?;
    let input = Rows::load(&program, job, spec.batch_size)?;
    // Random operators, where a program has them, draw the same numbers on every worker.
    tch::manual_seed(0);
    let batch_size = usize::try_from(spec.batch_size).expect("a batch size is limited");
    let batches = input.rows.div_ceil(batch_size);
    let mut parts: Vec<Vec<Tensor>> = program
        .user_outputs()
        .map(|_| Vec::with_capacity(batches))
        .collect();
    let mut told = Instant::now();
    for batch in 0..batches {
        context.check()?;
        let start = batch * batch_size;
        let length = batch_size.min(input.rows - start);
        let inputs = input
            .slice(start, length, context.device)
            .map_err(|error| failed(&error))?;
        for (part, output) in parts.iter_mut().zip(runner.run(&inputs)?) {
            part.push(
                output
                    .f_to_device(Device::Cpu)
                    .map_err(|error| failed(&error.into()))?,
            );
        }
        if told.elapsed() >= PROGRESS_INTERVAL {
            told = Instant::now();
            context.emit(Event::Progress {
                done: batch as u64 + 1,
                total: batches as u64,
            })?;
        }
    }
    let join = |(index, parts): (usize, Vec<Tensor>)| {
        let whole = Tensor::f_cat(&parts, 0).map_err(|error| failed(&error.into()))?;
        Ok((format!("output_{index}"), whole))
    };
    let named = parts
        .into_iter()
        .enumerate()
        .map(join)
        .collect::<Result<Vec<_>, Failure>>()?;
    let saved = files::save(context.scratch, "outputs.safetensors", &named)
        .map_err(|error| error.into_failure(Code::InvalidProgram, "save the outputs"))?;
    Ok(vec![Output {
        name: OUTPUT_TENSORS.to_owned(),
        path: saved.path,
        sha256: saved.sha256,
        bytes: saved.bytes,
    }])
}

fn failed(error: &AtenError) -> Failure {
    Failure::from_aten(Code::OperatorFailed, "run a batch", error)
}
