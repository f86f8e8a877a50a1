//! Jobs that are not done by their deadline end, and their money goes back.

use comptoir_domain::job::state::EndedAs;
use comptoir_store::{
    faults,
    jobs::{self, EndError},
    wake::Channel,
};
use time::OffsetDateTime;

use super::{Progress, ROUND_MAX, StepError};
use crate::SchedulerState;

/// Expires jobs whose deadline has passed.
pub async fn expire_jobs(
    state: &SchedulerState,
    now: OffsetDateTime,
) -> Result<Progress, StepError> {
    let late = faults::past_deadline(&mut *state.db.acquire().await?, now, ROUND_MAX).await?;
    let mut done = 0;
    for job in &late {
        let mut tx = state.db.begin().await?;
        match jobs::end(&mut tx, *job, EndedAs::Expired, None, now).await {
            Ok(ended) => {
                tx.commit().await?;
                tracing::info!(%job, "job expired");
                state.wake.publish(Channel::Job(*job));
                ended
                    .workers
                    .into_iter()
                    .for_each(|worker| state.wake.publish(Channel::Worker(worker)));
                done += 1;
            }
            // It ended in this very moment.
            Err(EndError::NotFound | EndError::Invalid(_)) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(Progress::of(late.len(), done))
}
