//! Draws: which single results are run again, from seeds that are committed to before and shown after.

use comptoir_domain::{
    digest::Sha256,
    id::{AttemptId, DrawSeedId, JobId},
    policy::{
        Draw,
        audit::{POLICY, commitment, piece},
    },
};
use sqlx::PgConnection;
use time::{Duration, OffsetDateTime};

use crate::{PgTransaction, codec::to_digest};

/// A seed that no settlement batch closed is closed after this time.
const SEED_LIFETIME: Duration = Duration::days(1);

/// A draw that was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MadeDraw {
    /// For which attempt.
    pub attempt: AttemptId,
    /// What was drawn.
    pub draw: Draw,
    /// The piece of a training that an audit begins with.
    pub piece: Option<u32>,
    /// What the seed was committed to as.
    pub commitment: Sha256,
    /// The seed, once it is closed.
    pub shown: Option<Sha256>,
    /// When it was made.
    pub drawn_at: OffsetDateTime,
}

/// The seed that is drawn from now; the first draw after a closing opens a new one. It stays open until the transaction ends.
async fn open_seed(
    tx: &mut PgTransaction<'_>,
    now: OffsetDateTime,
) -> sqlx::Result<(DrawSeedId, [u8; 32])> {
    for _ in 0..2 {
        let open = sqlx::query!(
            "SELECT draw_seed_id, seed FROM draw_seeds WHERE closed_at IS NULL FOR SHARE"
        )
        .fetch_optional(&mut **tx)
        .await?;
        if let Some(row) = open {
            return Ok((
                DrawSeedId(row.draw_seed_id),
                to_digest("seed", &row.seed)?.0,
            ));
        }
        let mut seed = [0; 32];
        aws_lc_rs::rand::fill(&mut seed).expect("the operating system gives random bytes");
        sqlx::query!(
            "INSERT INTO draw_seeds (draw_seed_id, commitment, seed, opened_at) VALUES ($1, $2, $3, $4)
             ON CONFLICT ((true)) WHERE closed_at IS NULL DO NOTHING",
            DrawSeedId::generate().0,
            &commitment(&seed).0,
            &seed,
            now,
        )
        .execute(&mut **tx)
        .await?;
    }
    Err(sqlx::Error::RowNotFound)
}

/// Draws for the one result of a sampled job, and which of its pieces an audit of training begins with. The worker's record
/// and the job are locked.
pub(crate) async fn draw(
    tx: &mut PgTransaction<'_>,
    job: JobId,
    (attempt, seal): (AttemptId, Sha256),
    (trusted, pieces): (u32, Option<u32>),
    now: OffsetDateTime,
) -> sqlx::Result<Draw> {
    let (seed_id, seed) = open_seed(tx, now).await?;
    let piece = pieces.map(|pieces| piece(&seed, (attempt, &seal.0), pieces));
    let draw = Draw::of(&POLICY, trusted, &seed, (attempt, &seal.0));
    sqlx::query!(
        "INSERT INTO draws (job_id, attempt_id, draw_seed_id, trusted, rate_ppm, drawn_ppm, drawn_at, piece)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
        job.0,
        attempt.0,
        seed_id.0,
        to_int(draw.trusted),
        to_int(draw.rate_ppm),
        to_int(draw.drawn_ppm),
        now,
        piece.map(to_int),
    )
    .execute(&mut **tx)
    .await?;
    Ok(draw)
}

fn to_int(count: u32) -> i32 {
    i32::try_from(count).unwrap_or(i32::MAX)
}

/// The draw of a job, if one was made.
pub async fn find(conn: &mut PgConnection, job: JobId) -> sqlx::Result<Option<MadeDraw>> {
    let row = sqlx::query!(
        "SELECT attempt_id, trusted, rate_ppm, drawn_ppm, drawn_at, piece, commitment, shown
         FROM draws JOIN draw_seeds USING (draw_seed_id) WHERE job_id = $1",
        job.0,
    )
    .fetch_optional(conn)
    .await?;
    row.map(|row| {
        Ok(MadeDraw {
            attempt: AttemptId(row.attempt_id),
            draw: Draw {
                trusted: row.trusted.unsigned_abs(),
                rate_ppm: row.rate_ppm.unsigned_abs(),
                drawn_ppm: row.drawn_ppm.unsigned_abs(),
            },
            piece: row.piece.map(i32::unsigned_abs),
            commitment: to_digest("commitment", &row.commitment)?,
            shown: row
                .shown
                .map(|seed| to_digest("shown", &seed))
                .transpose()?,
            drawn_at: row.drawn_at,
        })
    })
    .transpose()
}

/// Closes the open seed, and so shows it, once a settlement batch was sealed after it was opened, or after a day. Was it?
pub async fn close_seed(conn: &mut PgConnection, now: OffsetDateTime) -> sqlx::Result<bool> {
    let closed = sqlx::query!(
        "UPDATE draw_seeds SET closed_at = $1, shown = seed
         WHERE closed_at IS NULL AND (
             opened_at <= $2 OR EXISTS (SELECT FROM settlement_batches WHERE sealed_at > draw_seeds.opened_at)
         )",
        now,
        now.saturating_sub(SEED_LIFETIME),
    )
    .execute(conn)
    .await?;
    Ok(closed.rows_affected() > 0)
}
