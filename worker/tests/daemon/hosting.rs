//! Models that are called: loaded when they are, kept while there is room, and never the end of the worker.

use axum::extract::ws::Message;
use comptoir_wire::calls::{
    Answer, Fault, FaultCause, HostOrder, MESSAGE_BYTES_MAX, Outputs, ToWorker, pack,
};
use nix::sys::signal::Signal;
use tokio::time::{Instant, sleep};
use uuid::Uuid;

use crate::{
    calling::{Calls, Connection, PATIENCE, call, host},
    harness::{example, scratch_is_empty},
};

/// What the small net needs, with plenty to spare.
const MODEL_BYTES: u64 = 100 << 20;

fn outputs(answer: Answer) -> Outputs {
    match answer {
        Answer::Outputs(outputs) => outputs,
        other => panic!("no outputs: {other:?}"),
    }
}

fn fault(answer: Answer) -> Fault {
    match answer {
        Answer::Fault(fault) => fault,
        other => panic!("it was computed: {other:?}"),
    }
}

/// Calls until the version is there again.
async fn until_answered(connection: &mut Connection, version: u128) -> Outputs {
    let started = Instant::now();
    for id in 1_000.. {
        match connection.ask(version, id).await {
            Answer::Outputs(outputs) => return outputs,
            Answer::Written(written) => panic!("nobody asked for a text: {written:?}"),
            Answer::Fault(fault) => {
                assert_eq!(fault.cause, FaultCause::Worker);
                assert!(started.elapsed() < PATIENCE, "{fault:?}");
            }
        }
        sleep(std::time::Duration::from_millis(50)).await;
    }
    unreachable!("it is called until it answers")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_version_is_loaded_when_it_is_called_and_stays() {
    let mut server = Calls::new().await;
    let worker = server.worker(MODEL_BYTES).await;
    let mut connection = server.connection().await;
    assert_eq!(connection.hosts(&[]).await.memory_bytes, MODEL_BYTES);
    connection.send(&[host(server.order(1, MODEL_BYTES))]).await;
    let unknown = fault(connection.ask(2, 1).await);
    assert_eq!(unknown.cause, FaultCause::Worker);
    assert_eq!(server.fetched(), 0, "nothing is loaded before it is called");
    connection.send(&[call(1, 2), call(1, 3)]).await;
    let mut first = Vec::new();
    for _ in 0..2 {
        let (id, answer) = connection.answer().await;
        let outputs = outputs(answer);
        assert!(outputs.was_cold);
        assert_eq!(outputs.batch_rows, 2, "they came together");
        assert_eq!(outputs.tensors[0].shape, [1, 10]);
        first.push((id, outputs.tensors));
    }
    first.sort_by_key(|(id, _)| *id);
    assert_eq!((first[0].0, first[1].0), (2, 3));
    assert_eq!(first[0].1, first[1].1);
    connection.hosts(&[1]).await;
    let warm = outputs(connection.ask(1, 4).await);
    assert!(!warm.was_cold);
    assert_eq!(server.fetched(), 1);
    assert_eq!(server.children().len(), 1);
    worker.stop().await;
    connection.ended().await;
    scratch_is_empty(&server.worker_folder()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_longest_unused_version_makes_room() {
    let mut server = Calls::new().await;
    let worker = server.worker(2 * MODEL_BYTES).await;
    let mut connection = server.connection().await;
    let orders = (1..5).map(|version| host(server.order(version, MODEL_BYTES)));
    connection.send(&orders.collect::<Vec<_>>()).await;
    let large = server.order(9, 2 * MODEL_BYTES + 1);
    connection.send(&[host(large)]).await;
    for (id, version) in [(1, 1), (2, 2), (3, 1), (4, 3)] {
        outputs(connection.ask(version, id).await);
    }
    connection.hosts(&[1, 3]).await;
    assert_eq!(server.children().len(), 2);
    assert_eq!(fault(connection.ask(9, 5).await).cause, FaultCause::Worker);
    assert_eq!(server.fetched(), 1, "they have one program, which is kept");
    assert!(outputs(connection.ask(2, 6).await).was_cold);
    connection.hosts(&[2, 3]).await;
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_child_that_dies_answers_its_calls_and_is_started_again() {
    let mut server = Calls::new().await;
    let worker = server.worker(MODEL_BYTES).await;
    let mut connection = server.connection().await;
    connection.send(&[host(server.order(1, MODEL_BYTES))]).await;
    outputs(connection.ask(1, 1).await);
    server.signal(Signal::SIGSTOP);
    connection.send(&[call(1, 2), call(1, 3)]).await;
    connection
        .send(&[ToWorker::Cancel(Uuid::from_u128(2))])
        .await;
    // They are known to have come once the next is answered.
    assert_eq!(fault(connection.ask(9, 4).await).cause, FaultCause::Worker);
    server.signal(Signal::SIGKILL);
    let (id, answer) = connection.answer().await;
    assert_eq!(id, 3, "nobody waits for the other");
    assert_eq!(fault(answer).cause, FaultCause::Worker);
    assert!(until_answered(&mut connection, 1).await.was_cold);
    connection.hosts(&[1]).await;
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_is_lost_is_made_again_and_versions_stay_loaded() {
    let mut server = Calls::new().await;
    server.refuse(2);
    let worker = server.worker(MODEL_BYTES).await;
    let mut connection = server.connection().await;
    let order = host(server.order(1, MODEL_BYTES));
    connection.send(std::slice::from_ref(&order)).await;
    outputs(connection.ask(1, 1).await);
    // What was asked on the old connection is not answered on the new one.
    server.signal(Signal::SIGSTOP);
    connection.send(&[call(1, 2)]).await;
    drop(connection);
    let mut connection = server.connection().await;
    assert_eq!(connection.hosts(&[1]).await.memory_bytes, MODEL_BYTES);
    server.signal(Signal::SIGCONT);
    connection.send(&[order]).await;
    assert!(!outputs(connection.ask(1, 3).await).was_cold);
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_is_none_ends_the_connection_and_not_the_worker() {
    let mut server = Calls::new().await;
    let worker = server.worker(MODEL_BYTES).await;
    let stray = ToWorker::Call(serde_bytes::ByteBuf::from(vec![1; 3]));
    let forged = HostOrder {
        ticket: "x\r\ny: z".to_owned(),
        ..server.order(1, 1)
    };
    let order = host(server.order(1, MODEL_BYTES));
    for message in [
        Message::Binary(pack(&[order, call(1, 1), stray.clone()]).into()),
        Message::Binary(vec![0xff; 64].into()),
        Message::Binary(vec![0; MESSAGE_BYTES_MAX + 1].into()),
        Message::Binary(pack(&[stray]).into()),
        Message::Binary(pack(&[host(forged)]).into()),
        Message::Text("hello".into()),
    ] {
        let mut connection = server.connection().await;
        connection.send_any(message).await;
        connection.ended().await;
    }
    let mut connection = server.connection().await;
    // What came before the stray frame was begun all the same.
    connection.hosts(&[1]).await;
    connection.send(&[host(server.order(1, MODEL_BYTES))]).await;
    outputs(connection.ask(1, 1).await);
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn files_that_are_not_those_of_the_version_are_its_fault_and_not_the_worker_s() {
    let mut server = Calls::new().await;
    let worker = server.worker(MODEL_BYTES).await;
    let mut connection = server.connection().await;
    let order = server.order(1, MODEL_BYTES);
    let other = |version, program| HostOrder {
        version: Uuid::from_u128(version),
        program,
        ..order.clone()
    };
    let mut spoilt = example("encoder.pt2");
    let damaged = {
        let whole = spoilt.clone();
        spoilt[100] ^= 1;
        server.serve(&whole, &spoilt)
    };
    let mut absent = damaged;
    absent.sha256 = comptoir_domain::digest::Sha256::of(b"absent");
    let orders = [
        host(other(2, damaged)),
        host(other(3, server.serve(b"no program", b"no program"))),
        host(other(4, absent)),
    ];
    connection.send(&orders).await;
    for (version, cause) in [
        (2, FaultCause::Version),
        (3, FaultCause::Version),
        (4, FaultCause::Worker),
    ] {
        let fault = fault(connection.ask(version, version).await);
        assert_eq!(fault.cause, cause, "{fault:?}");
    }
    connection.send(&[host(order)]).await;
    outputs(connection.ask(1, 9).await);
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_stops_answers_what_it_has_and_takes_nothing_more() {
    let mut server = Calls::new().await;
    let worker = server.worker(MODEL_BYTES).await;
    let mut connection = server.connection().await;
    connection.send(&[host(server.order(1, MODEL_BYTES))]).await;
    outputs(connection.ask(1, 1).await);
    connection.hosts(&[1]).await;
    server.signal(Signal::SIGSTOP);
    connection.send(&[call(1, 2)]).await;
    // It is known to have come once the next is answered.
    assert_eq!(fault(connection.ask(9, 3).await).cause, FaultCause::Worker);
    worker.ask_to_stop();
    assert_eq!(connection.hosts(&[]).await.memory_bytes, 0);
    assert_eq!(fault(connection.ask(1, 4).await).cause, FaultCause::Busy);
    server.signal(Signal::SIGCONT);
    let (id, answer) = connection.answer().await;
    assert_eq!((id, outputs(answer).was_cold), (2, false));
    connection.ended().await;
    worker.stop().await;
    assert!(server.children().is_empty());
}
