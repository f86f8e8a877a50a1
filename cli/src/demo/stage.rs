//! How the demo tells its story: numbered steps with their time and figures.

use std::{
    io::Write as _,
    time::{Duration, Instant},
};

/// Prints steps as they pass.
pub struct Stage {
    started: Instant,
    step: u32,
}

impl Stage {
    /// The clock starts.
    #[must_use]
    pub fn new() -> Self {
        Self {
            started: Instant::now(),
            step: 0,
        }
    }

    /// Runs one step. What it returns beside its result are the figures to print.
    ///
    /// # Errors
    /// When the step fails; says which one.
    pub async fn step<T>(
        &mut self,
        title: &str,
        work: impl Future<Output = anyhow::Result<(T, String)>>,
    ) -> anyhow::Result<T> {
        self.step += 1;
        print!("{:>3}. {title} … ", self.step);
        std::io::stdout().flush()?;
        let from = Instant::now();
        match work.await {
            Ok((result, figures)) => {
                println!("{}", seconds(from.elapsed()));
                if !figures.is_empty() {
                    println!("     {}", figures.replace('\n', "\n     "));
                }
                Ok(result)
            }
            Err(error) => {
                println!("failed after {}", seconds(from.elapsed()));
                Err(error.context(format!("step {}: {title}", self.step)))
            }
        }
    }

    /// Time since the start.
    #[must_use]
    pub fn elapsed(&self) -> String {
        seconds(self.started.elapsed())
    }
}

fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}
