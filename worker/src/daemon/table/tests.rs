//! What comes out of the table for what goes in.

use comptoir_wire::{heartbeat::LeaseStatus, work::RevealOrder};
use time::OffsetDateTime;

use super::*;

struct Bench {
    table: Table,
    held: Held,
    cancel: CancellationToken,
    granted: Instant,
    folder: tempfile::TempDir,
}

impl Bench {
    fn computing() -> Self {
        let mut table = Table::new(WorkerId::generate());
        let held = Held {
            attempt_id: AttemptId::generate(),
            lease_token: LeaseToken::generate(),
        };
        let granted = Instant::now();
        let cancel = table.insert(held, granted).unwrap();
        let folder = tempfile::tempdir().unwrap();
        Self {
            table,
            held,
            cancel,
            granted,
            folder,
        }
    }

    fn sealing() -> Self {
        let mut bench = Self::computing();
        let scratch = Scratch::make(bench.scratch()).unwrap();
        let output = Output {
            name: "weights".to_owned(),
            path: scratch.path().join("weights"),
            sha256: Sha256::of(b"weights"),
            bytes: 7,
        };
        let computed = Computed {
            outputs: vec![output],
            compute_ms: 5,
        };
        bench
            .table
            .end(bench.held.attempt_id, Outcome::Computed(computed), scratch);
        bench
    }

    fn scratch(&self) -> std::path::PathBuf {
        self.folder.path().join("scratch")
    }

    fn reports(&self) -> (usize, usize, usize) {
        let request = self.table.reports().unwrap_or_default();
        (
            request.seals.len(),
            request.reveals.len(),
            request.failures.len(),
        )
    }

    fn ack(&mut self, report: Report, outcome: AckOutcome) -> Vec<Wanted> {
        let ack = Ack {
            attempt_id: self.held.attempt_id,
            report,
            outcome,
        };
        self.table.take(&WorkReply {
            acks: vec![ack],
            ..WorkReply::default()
        })
    }

    fn order(&mut self) {
        let order = RevealOrder {
            attempt_id: self.held.attempt_id,
            reveal_by: OffsetDateTime::UNIX_EPOCH,
        };
        self.table.take(&WorkReply {
            reveal: vec![order],
            ..WorkReply::default()
        });
    }

    fn beat(&mut self, status: LeaseState, sent: Instant) {
        let lease = LeaseStatus {
            attempt_id: self.held.attempt_id,
            status,
            expires_at: None,
        };
        self.table.take_heartbeats(
            &HeartbeatReply {
                leases: vec![lease],
            },
            sent,
        );
    }

    fn is_dropped(&self) -> bool {
        self.table.is_empty() && self.cancel.is_cancelled()
    }
}

const SEAL: (usize, usize, usize) = (1, 0, 0);
const REVEAL: (usize, usize, usize) = (0, 1, 0);
const FAILURE: (usize, usize, usize) = (0, 0, 1);
const NOTHING: (usize, usize, usize) = (0, 0, 0);

#[test]
fn a_result_is_sealed_then_revealed_when_ordered_and_its_files_go_when_it_is_taken() {
    let mut bench = Bench::sealing();
    let sealed = bench.table.reports().unwrap();
    assert_eq!(
        bench.table.reports().unwrap(),
        sealed,
        "a repeated report is the same report"
    );
    bench.ack(Report::Seal, AckOutcome::Accepted);
    assert_eq!(bench.reports(), NOTHING);
    bench.order();
    let reveal = &bench.table.reports().unwrap().reveals[0];
    let opened = seal(
        bench.table.worker,
        reveal.attempt_id,
        &reveal.salt.0,
        reveal.result_sha256,
    );
    assert_eq!(opened, sealed.seals[0].seal);
    assert_eq!(result_sha256(&reveal.outputs), reveal.result_sha256);
    assert!(bench.scratch().exists());
    bench.ack(Report::Reveal, AckOutcome::Accepted);
    assert!(bench.table.is_empty() && !bench.scratch().exists());
}

#[test]
fn an_order_whose_seal_s_ack_was_lost_is_followed() {
    let mut bench = Bench::sealing();
    bench.order();
    assert_eq!(bench.reports(), REVEAL);
    bench.ack(Report::Seal, AckOutcome::Accepted);
    assert_eq!(bench.reports(), REVEAL);
}

#[test]
fn a_reveal_that_was_not_ordered_waits_and_one_without_its_blob_uploads_again() {
    let mut bench = Bench::sealing();
    bench.order();
    bench.ack(Report::Reveal, AckOutcome::NotOrdered);
    assert_eq!(bench.reports(), NOTHING);
    bench.order();
    assert!(bench.table.awaiting_orders().is_empty());
    let wanted = bench.ack(Report::Reveal, AckOutcome::BlobMissing);
    assert_eq!((wanted.len(), wanted[0].files.len()), (1, 1));
    assert_eq!(bench.reports(), NOTHING);
    bench.table.note_uploaded_again(bench.held.attempt_id);
    assert_eq!(bench.reports(), REVEAL);
}

#[test]
fn a_stale_or_refused_report_drops_the_attempt() {
    for outcome in [
        AckOutcome::StaleLease,
        AckOutcome::SealMismatch,
        AckOutcome::OutputMissing,
    ] {
        let mut bench = Bench::sealing();
        bench.order();
        bench.ack(Report::Reveal, outcome);
        assert!(
            bench.is_dropped() && !bench.scratch().exists(),
            "{outcome:?}"
        );
    }
    let mut bench = Bench::sealing();
    bench.ack(Report::Seal, AckOutcome::StaleLease);
    assert!(bench.is_dropped());
}

#[test]
fn a_lease_without_an_answered_heartbeat_is_dropped_at_two_thirds_of_its_life() {
    let mut bench = Bench::computing();
    let at = |seconds| bench.granted + Duration::from_secs(seconds);
    let [renewed, early, late, too_late] = [at(10), at(29), at(30), at(31)];
    bench.beat(LeaseState::Ok, renewed);
    assert!(!bench.table.give_up_unrenewed(early) && !bench.is_dropped());
    // An older heartbeat that is answered late renews nothing.
    bench.beat(LeaseState::Ok, bench.granted);
    assert!(!bench.table.give_up_unrenewed(early) && !bench.is_dropped());
    assert!(bench.table.give_up_unrenewed(late) && bench.is_dropped());
    bench.beat(LeaseState::Ok, too_late);
    assert!(bench.table.is_empty());
}

#[test]
fn a_lost_lease_and_an_ended_job_stop_the_attempt_without_a_report() {
    for status in [LeaseState::Lost, LeaseState::Cancelled] {
        let mut bench = Bench::computing();
        bench.beat(status, bench.granted);
        assert!(bench.is_dropped());
    }
    let mut bench = Bench::computing();
    let cancel = vec![bench.held.attempt_id];
    bench.table.take(&WorkReply {
        cancel,
        ..WorkReply::default()
    });
    assert!(bench.is_dropped());
    let scratch = Scratch::make(bench.scratch()).unwrap();
    bench
        .table
        .end(bench.held.attempt_id, Outcome::Dropped, scratch);
    assert_eq!(bench.reports(), NOTHING);
}

#[test]
fn a_stopping_worker_gives_back_what_computes_and_keeps_what_is_computed() {
    let mut computing = Bench::computing();
    computing.table.give_back(false);
    assert_eq!(computing.reports(), FAILURE);
    assert!(computing.cancel.is_cancelled());
    assert_eq!(
        computing.table.reports().unwrap().failures[0].code,
        WORKER_STOPPING
    );
    computing.ack(Report::Failure, AckOutcome::Accepted);
    assert!(computing.table.is_empty());
    let mut uploading = Bench::computing();
    uploading.table.note_computed(uploading.held.attempt_id);
    uploading.table.give_back(false);
    assert!(!uploading.cancel.is_cancelled());
    let mut sealing = Bench::sealing();
    sealing.table.give_back(false);
    assert_eq!(sealing.reports(), SEAL);
    sealing.table.give_back(true);
    assert_eq!(sealing.reports(), FAILURE);
}

#[test]
fn nonsense_of_a_server_changes_nothing() {
    let mut bench = Bench::computing();
    for report in [Report::Seal, Report::Reveal, Report::Failure] {
        bench.ack(report, AckOutcome::Accepted);
        bench.ack(report, AckOutcome::StaleLease);
    }
    bench.order();
    assert_eq!((bench.table.len(), bench.reports()), (1, NOTHING));
    assert!(bench.table.insert(bench.held, bench.granted).is_none());
}
