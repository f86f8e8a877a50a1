//! How the demo tells its story: numbered steps with their time and figures, as lines for people or for programs.

use std::{
    io::Write as _,
    path::Path,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::output::say;

/// Prints steps as they pass.
pub struct Stage {
    started: Instant,
    step: u32,
    json: bool,
}

impl Stage {
    /// The clock starts.
    #[must_use]
    pub fn new(json: bool) -> Self {
        Self {
            started: Instant::now(),
            step: 0,
            json,
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
        if !self.json {
            print!("{:>3}. {title} … ", self.step);
            std::io::stdout().flush()?;
        }
        let from = Instant::now();
        let done = work.await;
        let figures = done.as_ref().map(|(_, figures)| figures.as_str()).ok();
        if self.json {
            say(to_line(self.step, title, from.elapsed(), figures));
        } else {
            say(to_text(from.elapsed(), figures));
        }
        done.map(|(result, _)| result)
            .map_err(|error| error.context(format!("step {}: {title}", self.step)))
    }

    /// The verdict on a story that came to its end.
    pub fn passed(&self) {
        let elapsed = self.started.elapsed();
        if self.json {
            say(json!({ "verdict": "passed", "seconds": elapsed.as_secs_f64() }));
        } else {
            let elapsed = seconds(elapsed);
            say(format_args!(
                "\nVERDICT: the main job ran from deposit to claim in {elapsed}"
            ));
        }
    }

    /// The verdict on one that did not, and where its files are.
    pub fn failed(&self, error: &anyhow::Error, folder: &Path) {
        let elapsed = self.started.elapsed();
        if self.json {
            let error = format!("{error:#}");
            say(
                json!({ "verdict": "failed", "seconds": elapsed.as_secs_f64(), "error": error, "folder": folder }),
            );
        } else {
            let (elapsed, folder) = (seconds(elapsed), folder.display());
            say(format_args!(
                "\nVERDICT: failed after {elapsed}; logs are in {folder}"
            ));
        }
    }
}

/// A step for programs; one without figures has failed.
fn to_line(step: u32, title: &str, time: Duration, figures: Option<&str>) -> Value {
    json!({
        "step": step, "title": title, "passed": figures.is_some(), "seconds": time.as_secs_f64(),
        "figures": figures.unwrap_or_default().lines().collect::<Vec<_>>(),
    })
}

/// What follows a step's title for people.
fn to_text(time: Duration, figures: Option<&str>) -> String {
    let time = seconds(time);
    match figures {
        Some("") => time,
        Some(figures) => format!("{time}\n     {}", figures.replace('\n', "\n     ")),
        None => format!("failed after {time}"),
    }
}

fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_reads_a_step_as_one_line() {
        let passed = to_line(3, "it settles", Duration::from_millis(1_500), Some("a\nb"));
        let expected = json!({ "step": 3, "title": "it settles", "passed": true, "seconds": 1.5, "figures": ["a", "b"] });
        assert_eq!(passed, expected);
        assert!(!passed.to_string().contains('\n'));
        let failed = to_line(4, "it claims", Duration::ZERO, None);
        assert_eq!(
            (&failed["passed"], &failed["figures"]),
            (&json!(false), &json!([]))
        );
    }

    #[test]
    fn people_read_the_figures_below_their_step() {
        let time = Duration::from_millis(1_500);
        assert_eq!(to_text(time, Some("a\nb")), "1.5 s\n     a\n     b");
        assert_eq!(to_text(time, Some("")), "1.5 s");
        assert_eq!(to_text(time, None), "failed after 1.5 s");
    }
}
