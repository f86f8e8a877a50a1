//! Training: rows in a fixed order, one optimizer step per batch, a checkpoint at the end of each segment.

use std::time::{Duration, Instant};

use comptoir_domain::{
    job::{Loss, TrainingSpec},
    seal::{OUTPUT_CHECKPOINT, OUTPUT_WEIGHTS},
    segment, shuffle,
};
use tch::Tensor;

use super::{
    checkpoint::{self, Progress},
    child::{Context, Stop},
    failure::{Code, Failure},
    files::{self, Saved},
    message::{EpochMetrics, Event, JobTask, Output, Segment},
    objective::Objective,
    optimizer::Optimizer,
    plan::Phase,
    rows::{self, Rows},
    runner::Runner,
    schedule::{self, Position},
    state::State,
};
use crate::aten::AtenError;

/// How often progress is told.
pub const PROGRESS_INTERVAL: Duration = Duration::from_millis(500);

/// Runs a training job to its end, or replays a piece of it.
pub fn train(
    spec: &TrainingSpec,
    job: &JobTask,
    context: &mut Context<'_>,
) -> Result<Vec<Output>, Stop> {
    let mut session = Session::start(spec, job, context)?;
    if let Some(checkpoint) = &job.resume {
        session.progress = checkpoint::restore(
            checkpoint,
            &session.state,
            &mut session.optimizer,
            context.device,
        )?;
        if session.progress.step > session.steps_total {
            return Err(Failure::new(
                Code::InvalidCheckpoint,
                "the checkpoint is from behind the end",
            )
            .into());
        }
    }
    if let Some(until) = job.until_step.filter(|until| *until < session.steps_total) {
        return session.replay(until, context);
    }
    let mut told = Instant::now();
    while session.progress.step < session.steps_total {
        context.check()?;
        session.step(context)?;
        if job.until_step.is_some() {
            session.end_epoch();
            continue;
        }
        session.report(context)?;
        if told.elapsed() >= PROGRESS_INTERVAL {
            told = Instant::now();
            context.emit(Event::Progress {
                done: session.progress.step,
                total: session.steps_total,
            })?;
        }
    }
    let saved = files::save(
        context.scratch,
        "weights.safetensors",
        &session.state.saved(),
    )
    .map_err(|error| error.into_failure(Code::InvalidProgram, "save the weights"))?;
    Ok(vec![Output {
        name: OUTPUT_WEIGHTS.to_owned(),
        path: saved.path,
        sha256: saved.sha256,
        bytes: saved.bytes,
    }])
}

/// A training in progress.
struct Session<'a> {
    spec: &'a TrainingSpec,
    runner: Runner,
    state: State,
    parameters: Vec<Tensor>,
    optimizer: Optimizer,
    rows: Rows,
    objective: Objective,
    batch_size: usize,
    steps_per_epoch: u64,
    steps_total: u64,
    progress: Progress,
    /// The epoch whose order is held, and that order.
    order: Option<(u32, Vec<i64>)>,
    learning_rate: f64,
    epoch_started: Instant,
}

impl<'a> Session<'a> {
    fn start(
        spec: &'a TrainingSpec,
        job: &JobTask,
        context: &Context<'_>,
    ) -> Result<Self, Failure> {
        let mut archive = rows::open_program(job, &job.spec)?;
        let program = archive.program().clone();
        if !program.is_trainable() {
            let reason = "the program cannot be trained: export it in train mode, as training IR, with parameters";
            return Err(Failure::new(Code::InvalidProgram, reason));
        }
        let outputs = program.user_outputs().count();
        if u64::from(spec.output) >= outputs as u64 {
            let reason = format!(
                "the loss reads output {}, and the program has {outputs}",
                spec.output
            );
            return Err(Failure::new(Code::InvalidInput, reason));
        }
        let mut runner = Runner::new(&program, Phase::Training, context.device)?;
        let mut state = State::load(&mut archive, context.device)?;
        if let Some(weights) = spec.weights {
            state.apply(&mut rows::open(job, weights)?)?;
        }
        runner.attach(&state)?;
        let rows = Rows::load(&program, job, spec.batch_size)?;
        let objective = Objective::new(spec.loss, rows::load(job, &spec.target)?, rows.rows)?;
        let started =
            |error: AtenError| Failure::from_aten(Code::Machine, "start the training", &error);
        let parameters = state.track_gradients().map_err(started)?;
        let optimizer = Optimizer::new(spec.optimizer.clone(), parameters.len());
        checkpoint::check_size(&state, parameters.len())?;
        tch::manual_seed(i64::try_from(spec.seed).expect("a seed is below 2^53"));
        let batch_size = usize::try_from(spec.batch_size).expect("a batch size is limited");
        let steps_per_epoch = rows.rows.div_ceil(batch_size) as u64;
        let steps_total = segment::steps_in_all(spec, rows.rows as u64);
        if steps_total / u64::from(spec.segment_steps) > u64::from(u32::MAX) {
            return Err(Failure::new(
                Code::InvalidInput,
                "the training has more segments than can be counted",
            ));
        }
        Ok(Self {
            spec,
            runner,
            state,
            parameters,
            optimizer,
            rows,
            objective,
            batch_size,
            steps_per_epoch,
            steps_total,
            progress: Progress::default(),
            order: None,
            learning_rate: spec.optimizer.learning_rate(),
            epoch_started: Instant::now(),
        })
    }

    /// One optimizer step.
    fn step(&mut self, context: &Context<'_>) -> Result<(), Failure> {
        let step = self.progress.step;
        let epoch = u32::try_from(step / self.steps_per_epoch).expect("epochs are limited");
        let first = usize::try_from(step % self.steps_per_epoch)
            .expect("a batch is within the rows")
            * self.batch_size;
        let batch = self.batch(epoch, first);
        let on_libtorch =
            |error: AtenError| Failure::from_aten(Code::OperatorFailed, "train a step", &error);
        let inputs = self
            .rows
            .select(&batch, context.device)
            .map_err(on_libtorch)?;
        let outputs = self.runner.run(&inputs)?;
        let output = &outputs
            [usize::try_from(self.spec.output).expect("it was checked against the program")];
        let measured = self.objective.measure(output, &batch, context.device)?;
        if !measured.value.is_finite() {
            let reason = format!("the loss of step {} is {}", step + 1, measured.value);
            return Err(Failure::new(Code::Diverged, reason));
        }
        let gradients = Tensor::f_run_backward(&[&measured.loss], &self.parameters, false, false)
            .map_err(|error| on_libtorch(error.into()))?;
        let position = Position {
            step,
            steps_total: self.steps_total,
            epoch,
        };
        self.learning_rate = schedule::learning_rate(
            &self.spec.schedule,
            self.spec.optimizer.learning_rate(),
            position,
        );
        self.optimizer
            .step(&self.parameters, &gradients, self.learning_rate)
            .map_err(on_libtorch)?;
        self.progress
            .took(batch.numel() as u64, measured.value, measured.correct);
        Ok(())
    }

    /// The rows of a step, in the epoch's order; the last step takes what is left.
    fn batch(&mut self, epoch: u32, first: usize) -> Tensor {
        if self.order.as_ref().is_none_or(|(known, _)| *known != epoch) {
            let shuffled = shuffle::shuffled(self.rows.rows, self.spec.seed, u64::from(epoch));
            let order = shuffled
                .into_iter()
                .map(|row| i64::try_from(row).expect("rows are counted in i64"))
                .collect();
            self.order = Some((epoch, order));
        }
        let order = self
            .order
            .as_ref()
            .map(|(_, order)| order.as_slice())
            .expect("it was just made");
        let last = (first + self.batch_size).min(order.len());
        Tensor::from_slice(&order[first..last])
    }

    /// Goes on to a step before the end, where a segment ends, tells of nothing, and gives out the checkpoint.
    fn replay(mut self, until: u64, context: &mut Context<'_>) -> Result<Vec<Output>, Stop> {
        while self.progress.step < until {
            context.check()?;
            self.step(context)?;
            self.end_epoch();
        }
        let segment = (until / u64::from(self.spec.segment_steps)).saturating_sub(1);
        let saved = checkpoint::save(
            context.scratch,
            u32::try_from(segment).expect("segments were counted at the start"),
            &self.state,
            &self.optimizer,
            &self.progress,
            context.device,
        )?;
        Ok(vec![Output {
            name: OUTPUT_CHECKPOINT.to_owned(),
            path: saved.path,
            sha256: saved.sha256,
            bytes: saved.bytes,
        }])
    }

    /// Where an epoch has just ended, what was counted of it is forgotten.
    fn end_epoch(&mut self) {
        if self.progress.step.is_multiple_of(self.steps_per_epoch) {
            self.progress.start_epoch();
            self.epoch_started = Instant::now();
        }
    }

    /// Tells of an epoch or a segment that has just ended. What is left after the last whole segment has no checkpoint.
    fn report(&mut self, context: &mut Context<'_>) -> Result<(), Stop> {
        let step = self.progress.step;
        if step.is_multiple_of(self.steps_per_epoch) {
            let epoch = u32::try_from(step / self.steps_per_epoch - 1).expect("epochs are limited");
            context.emit(Event::Metrics(self.metrics(epoch)))?;
        }
        self.end_epoch();
        let segment_steps = u64::from(self.spec.segment_steps);
        if step.is_multiple_of(segment_steps) {
            let segment = u32::try_from(step / segment_steps - 1)
                .expect("segments were counted at the start");
            let saved = checkpoint::save(
                context.scratch,
                segment,
                &self.state,
                &self.optimizer,
                &self.progress,
                context.device,
            )?;
            let Saved {
                path,
                sha256,
                bytes,
            } = saved;
            context.emit(Event::Segment(Segment {
                segment,
                step,
                path,
                sha256,
                bytes,
            }))?;
        }
        Ok(())
    }

    fn metrics(&self, epoch: u32) -> EpochMetrics {
        EpochMetrics {
            epoch,
            step: self.progress.step,
            loss: self.progress.mean_loss(),
            accuracy: match self.spec.loss {
                Loss::CrossEntropy => Some(self.progress.accuracy()),
                Loss::Mse => None,
            },
            learning_rate: self.learning_rate,
            rows: self.progress.rows,
            seconds: self.epoch_started.elapsed().as_secs_f64(),
        }
    }
}
