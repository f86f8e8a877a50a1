use super::*;

const NOW_WITHIN_MS: u32 = 1_000;

fn id(number: u128) -> Uuid {
    Uuid::from_u128(number)
}

fn order(version: u128, memory_bytes: u64) -> HostOrder {
    HostOrder {
        version: id(version),
        ticket: "ticket".to_owned(),
        program: comptoir_wire::work::BlobSize {
            sha256: comptoir_domain::digest::Sha256::of(b""),
            bytes: 0,
        },
        weights: None,
        writing: None,
        memory_bytes,
        batch_max: 8,
    }
}

struct Bench {
    table: Table,
    now: Instant,
    calls: u128,
}

impl Bench {
    /// Room for 10 bytes; versions 1 to 9, of 4 bytes each.
    fn new() -> Self {
        let mut table = Table::new(10);
        for version in 1..10 {
            table.host(order(version, 4)).unwrap();
        }
        Self {
            table,
            now: Instant::now(),
            calls: 0,
        }
    }

    fn call(&mut self, version: u128, bytes: usize) -> Taken {
        self.calls += 1;
        let heading = Heading {
            id: id(self.calls),
            version: id(version),
            within_ms: NOW_WITHIN_MS,
        };
        self.table
            .call(&heading, ByteBuf::from(vec![0; bytes]), self.now)
    }

    /// Calls a version and answers; which ones went for it.
    fn load(&mut self, version: u128) -> Vec<Uuid> {
        let evicted = match self.call(version, 1) {
            Taken::Start(start) => start.evicted,
            Taken::Queued(_) => Vec::new(),
            Taken::Refused(fault) => panic!("refused: {fault:?}"),
        };
        self.table.loaded(id(version));
        self.table.frames(id(version), self.now);
        assert!(self.table.answered(id(version), id(self.calls), true));
        evicted
    }

    fn refused(&mut self, version: u128, bytes: usize) -> FaultCause {
        match self.call(version, bytes) {
            Taken::Refused(fault) => fault.cause,
            taken => panic!("not refused: {taken:?}"),
        }
    }
}

#[test]
fn the_longest_unused_version_goes_when_another_needs_its_memory() {
    let mut bench = Bench::new();
    assert!(bench.load(1).is_empty());
    assert!(bench.load(2).is_empty());
    assert!(bench.load(1).is_empty());
    assert_eq!(bench.table.hosting().loaded, [id(1), id(2)]);
    assert_eq!(bench.load(3), [id(2)]);
    assert_eq!(bench.table.hosting().loaded, [id(1), id(3)]);
    assert_eq!(
        bench.refused(2, 1),
        FaultCause::Busy,
        "it has not ended yet"
    );
    bench.table.ended(id(2), None, bench.now);
    assert_eq!(bench.load(2), [id(1)]);
}

#[test]
fn a_version_that_is_called_does_not_go() {
    let mut bench = Bench::new();
    bench.load(1);
    bench.load(2);
    assert!(matches!(bench.call(1, 1), Taken::Queued(_)));
    assert_eq!(bench.load(3), [id(2)]);
    assert!(matches!(bench.call(3, 1), Taken::Queued(_)));
    assert_eq!(bench.refused(4, 1), FaultCause::Busy);
    bench.table.host(order(20, 11)).unwrap();
    assert_eq!(bench.refused(20, 1), FaultCause::Worker, "it never fits");
    assert_eq!(
        bench.refused(30, 1),
        FaultCause::Worker,
        "nobody spoke of it"
    );
}

#[test]
fn calls_are_bounded_in_number_and_in_bytes() {
    let mut bench = Bench::new();
    assert!(matches!(bench.call(1, BYTES_MAX), Taken::Start(_)));
    assert_eq!(bench.refused(1, 1), FaultCause::Busy);
    let mut bench = Bench::new();
    assert!(matches!(bench.call(1, 1), Taken::Start(_)));
    for _ in 1..CALLS_MAX {
        assert!(matches!(bench.call(1, 1), Taken::Queued(_)));
    }
    assert_eq!(bench.refused(1, 1), FaultCause::Busy);
    bench.table.loaded(id(1));
    bench.table.frames(id(1), bench.now);
    assert!(bench.table.answered(id(1), id(1), true));
    assert!(matches!(bench.call(1, 1), Taken::Queued(_)));
}

#[test]
fn a_child_is_told_as_much_as_a_message_holds() {
    let mut bench = Bench::new();
    let half = MESSAGE_BYTES_MAX / 2 - 2 * FRAME_BYTES;
    for _ in 0..3 {
        bench.call(1, half);
    }
    bench.now += Duration::from_millis(400);
    let told = bench.table.frames(id(1), bench.now);
    let ToHost::Call {
        within_ms,
        was_cold,
        ..
    } = &told[0]
    else {
        panic!("no call: {:?}", told[0])
    };
    assert_eq!(
        (*within_ms, *was_cold),
        (600, true),
        "it waited for that long"
    );
    assert_eq!(told.len(), 2);
    assert_eq!(bench.table.waits(id(1)), (true, true));
    assert_eq!(bench.table.frames(id(1), bench.now).len(), 1);
    assert_eq!(bench.table.waits(id(1)), (false, true));
}

#[test]
fn a_cancelled_call_is_not_answered() {
    let mut bench = Bench::new();
    bench.call(1, 1);
    bench.call(1, 1);
    assert!(bench.table.cancel(id(1)).is_none(), "it did not leave yet");
    assert_eq!(bench.table.frames(id(1), bench.now).len(), 1);
    assert!(bench.table.cancel(id(2)).is_some());
    assert_eq!(
        bench.table.frames(id(1), bench.now),
        [ToHost::Cancel(id(2))]
    );
    assert!(bench.table.is_silent());
    assert!(!bench.table.answered(id(1), id(2), true));
    assert_eq!(bench.table.waits(id(1)), (false, false));
}

#[test]
fn a_child_answers_what_it_was_asked_and_nothing_else() {
    let mut bench = Bench::new();
    bench.call(1, 1);
    bench.call(2, 1);
    assert!(
        !bench.table.answered(id(1), id(1), true),
        "it was not told yet"
    );
    bench.table.frames(id(1), bench.now);
    assert!(!bench.table.answered(id(2), id(1), true), "it is another's");
    assert!(bench.table.answered(id(1), id(1), true));
    assert!(!bench.table.answered(id(1), id(1), true), "once");
}

#[test]
fn a_child_that_ends_answers_for_its_calls_and_waits_before_it_starts_again() {
    let mut bench = Bench::new();
    bench.load(1);
    bench.call(1, 1);
    bench.call(1, 1);
    bench.table.cancel(id(2));
    let why = fault(FaultCause::Version, "x");
    let waiting = bench.table.ended(id(1), Some(why), bench.now);
    assert_eq!(waiting, [id(3)]);
    assert!(bench.table.hosting().loaded.is_empty());
    assert_eq!(bench.refused(1, 1), FaultCause::Version);
    bench.now += Duration::from_mins(1);
    assert!(matches!(bench.call(1, 1), Taken::Start(_)));
}

#[test]
fn a_connection_that_ends_takes_its_calls_with_it() {
    let mut bench = Bench::new();
    bench.load(1);
    bench.call(1, 1);
    bench.table.frames(id(1), bench.now);
    bench.call(1, 1);
    assert_eq!(bench.table.disconnect(bench.now).len(), 1);
    assert!(bench.table.is_silent());
    assert_eq!(bench.table.hosting().loaded, [id(1)], "it stays");
    assert_eq!(bench.refused(2, 1), FaultCause::Worker, "it is told again");
    bench.table.host(order(1, 4)).unwrap();
    assert!(matches!(bench.call(1, 1), Taken::Queued(_)));
}

#[test]
fn a_worker_that_stops_takes_no_call_and_says_so() {
    let mut bench = Bench::new();
    bench.load(1);
    bench.call(1, 1);
    bench.table.close();
    assert_eq!(bench.refused(1, 1), FaultCause::Busy);
    assert_eq!(bench.table.hosting().memory_bytes, 0);
    assert!(!bench.table.is_silent());
}

#[test]
fn orders_are_bounded() {
    let mut table = Table::new(1);
    for version in 0..ORDERS_MAX {
        table.host(order(version as u128, 1)).unwrap();
    }
    assert!(table.host(order(u128::MAX, 1)).is_err());
    assert!(table.host(order(0, 1)).is_ok());
    let ticket = "x\r\nauthorization: y".to_owned();
    let forged = HostOrder {
        ticket,
        ..order(0, 1)
    };
    assert!(table.host(forged).is_err());
}
