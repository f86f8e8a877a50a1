//! How much slower the runner of `.pt2` programs is than the same nets written by hand on libtorch's eager operators.
//!
//! Both sides make the same calls of operators in the same order (those of `PyTorch`'s own modules), with the same
//! switches, on one thread, over tensors of their own; what is compared is everything around the kernels. They take turns
//! within each round. A training step is forward, cross-entropy, the count of hits, backward and AdamW. The last line is
//! the case that did worst, as JSON.
//!
//! With `--hosting`: how many calls a second a child that hosts a model answers.

mod hosting;
mod nets;

use std::{fs::File, hint::black_box, io::BufReader, path::Path, time::Instant};

use anyhow::Context as _;
use clap::Parser;
use comptoir_domain::job::{Loss, Optimizer as Rule, spec::AdamOptions};
use comptoir_worker::{
    aten,
    engine::{
        objective::Objective,
        optimizer::Optimizer,
        plan::Phase,
        runner::Runner,
        state::{ProgramFile, State},
    },
};
use tch::{Device, Kind, Tensor};

use nets::{AdamW, Net};

/// What the ratio may be at most.
const GOAL: f64 = 1.05;
/// What calls of a hosted model may be at least, of the rows that libtorch alone computes.
const HOSTING_GOAL: f64 = 0.25;
/// Numbers of rows in a batch.
const BATCHES: [i64; 2] = [1, 32];
const LEARNING_RATE: f64 = 1e-3;

/// Measures the runner beside libtorch.
#[derive(Parser)]
struct Options {
    /// Rounds of each case
    #[arg(long, default_value_t = 25)]
    rounds: usize,
    /// How long each side of a round takes, in milliseconds
    #[arg(long, default_value_t = 60)]
    millis: u64,
    /// Where the programs are
    #[arg(long, default_value = "examples/digits")]
    data: std::path::PathBuf,
    /// Measures calls of a hosted model in place of the runner
    #[arg(long)]
    hosting: bool,
}

/// One case: ours and theirs, in microseconds, or each second.
struct Measured {
    ratio: f64,
    value: f64,
    reference: f64,
}

fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    aten::configure(1, Device::Cpu)?;
    if options.hosting {
        let measured = hosting::measure(&options)?;
        report("hosting", &format!(">={HOSTING_GOAL}"), &measured);
        return Ok(());
    }
    let mut worst: Option<Measured> = None;
    for net in ["convnet", "encoder"] {
        for batch in BATCHES {
            for phase in [Phase::Inference, Phase::Training] {
                let measured = measure(&options, net, batch, phase)?;
                println!(
                    "{net:<8} batch {batch:<3} {phase:?}: {:.1} us beside {:.1} us, {:.3}",
                    measured.value, measured.reference, measured.ratio
                );
                if worst.as_ref().is_none_or(|it| it.ratio < measured.ratio) {
                    worst = Some(measured);
                }
            }
        }
    }
    let worst = worst.context("there are cases")?;
    report("runner", &format!("<={GOAL}"), &worst);
    Ok(())
}

fn report(name: &str, goal: &str, measured: &Measured) {
    let line = serde_json::json!({
        "name": name,
        "ratio": measured.ratio,
        "goal": goal,
        "reference": measured.reference,
        "value": measured.value,
    });
    println!("{line}");
}

fn measure(options: &Options, net: &str, batch: i64, phase: Phase) -> anyhow::Result<Measured> {
    let _guard = (phase == Phase::Inference).then(tch::no_grad_guard);
    let mut ours = Ours::new(&options.data, net, batch, phase)?;
    let mut theirs = Theirs::new(&options.data, net, batch, phase)?;
    same(&ours.forward()?, &theirs.forward(), phase)?;
    let once = Instant::now();
    for _ in 0..20 {
        theirs.turn();
        ours.turn()?;
    }
    let turns = u128::from(options.millis) * 1_000_000 * 40 / once.elapsed().as_nanos().max(1);
    let turns = u32::try_from(turns.max(1))?;
    let (mut ratios, mut values, mut references) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..options.rounds {
        let reference = timed(turns, || {
            theirs.turn();
            Ok(())
        })?;
        let value = timed(turns, || ours.turn())?;
        ratios.push(value / reference);
        values.push(value);
        references.push(reference);
    }
    Ok(Measured {
        ratio: median(&mut ratios),
        value: median(&mut values),
        reference: median(&mut references),
    })
}

/// Microseconds of one turn.
fn timed(turns: u32, mut turn: impl FnMut() -> anyhow::Result<()>) -> anyhow::Result<f64> {
    let start = Instant::now();
    for _ in 0..turns {
        turn()?;
    }
    Ok(start.elapsed().as_secs_f64() * 1e6 / f64::from(turns))
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Without dropout both compute the same bits.
fn same(ours: &Tensor, theirs: &Tensor, phase: Phase) -> anyhow::Result<()> {
    anyhow::ensure!(
        phase == Phase::Training || ours == theirs,
        "the net written by hand is another one"
    );
    Ok(())
}

/// The runner's side.
struct Ours {
    runner: Runner,
    input: [Tensor; 1],
    training: Option<(Vec<Tensor>, Optimizer, Objective, Tensor)>,
}

impl Ours {
    fn new(data: &Path, net: &str, batch: i64, phase: Phase) -> anyhow::Result<Self> {
        let (archive, state) = load(data, net)?;
        let mut runner = Runner::new(archive.program(), phase, Device::Cpu)?;
        runner.attach(&state)?;
        let (input, target) = nets::example(net, batch);
        let training = match phase {
            Phase::Inference => None,
            Phase::Training => {
                let parameters = state.track_gradients()?;
                let optimizer = Optimizer::new(Rule::Adamw(adam()), parameters.len());
                let rows = usize::try_from(batch)?;
                let objective = Objective::new(Loss::CrossEntropy, target, rows)?;
                let all = Tensor::arange(batch, (Kind::Int64, Device::Cpu));
                Some((parameters, optimizer, objective, all))
            }
        };
        Ok(Self {
            runner,
            input: [input],
            training,
        })
    }

    fn forward(&mut self) -> anyhow::Result<Tensor> {
        let mut outputs = self.runner.run(&self.input)?;
        outputs.pop().context("the program has an output")
    }

    fn turn(&mut self) -> anyhow::Result<()> {
        let output = self.forward()?;
        let Some((parameters, optimizer, objective, all)) = &mut self.training else {
            drop(black_box(output));
            return Ok(());
        };
        let measured = objective.measure(&output, all, Device::Cpu)?;
        let gradients = Tensor::f_run_backward(&[&measured.loss], parameters, false, false)?;
        optimizer.step(parameters, &gradients, LEARNING_RATE)?;
        black_box((measured.value, measured.correct));
        Ok(())
    }
}

/// The side written by hand.
struct Theirs {
    net: Net,
    input: Tensor,
    target: Tensor,
    training: Option<(Vec<Tensor>, AdamW)>,
}

impl Theirs {
    fn new(data: &Path, name: &str, batch: i64, phase: Phase) -> anyhow::Result<Self> {
        let (_, state) = load(data, name)?;
        let training = match phase {
            Phase::Inference => None,
            Phase::Training => {
                let parameters = state.track_gradients()?;
                let adam = AdamW::new(&parameters, adam());
                Some((parameters, adam))
            }
        };
        let (input, target) = nets::example(name, batch);
        Ok(Self {
            net: Net::new(name, &state)?,
            input,
            target,
            training,
        })
    }

    fn forward(&self) -> Tensor {
        self.net.forward(&self.input, self.training.is_some())
    }

    fn turn(&mut self) {
        let output = self.forward();
        let Some((parameters, adam)) = &mut self.training else {
            drop(black_box(output));
            return;
        };
        let (loss, hits) = nets::loss(&output, &self.target);
        let gradients = Tensor::run_backward(&[&loss], parameters, false, false);
        adam.step(parameters, &gradients, LEARNING_RATE);
        black_box(hits);
    }
}

fn load(data: &Path, net: &str) -> anyhow::Result<(ProgramFile, State)> {
    let path = data.join(format!("{net}.pt2"));
    let file = File::open(&path).with_context(|| path.display().to_string())?;
    let mut archive = ProgramFile::open(BufReader::new(file))?;
    let state = State::load(&mut archive, Device::Cpu)?;
    Ok((archive, state))
}

fn adam() -> AdamOptions {
    AdamOptions {
        learning_rate: LEARNING_RATE,
        beta1: 0.9,
        beta2: 0.999,
        epsilon: 1e-8,
        weight_decay: 0.01,
    }
}
