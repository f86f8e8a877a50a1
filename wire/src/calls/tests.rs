//! What is packed is unpacked, within limits.

use super::*;

fn tensor(shape: &[u64], bytes: usize) -> Tensor {
    Tensor {
        dtype: ScalarType::F32,
        shape: shape.to_vec(),
        bytes: vec![7; bytes],
    }
}

fn asking(tensors: Vec<Tensor>) -> Call {
    Call {
        id: Uuid::from_u128(1),
        version: Uuid::from_u128(2),
        within_ms: 30_000,
        ask: Ask::Infer(tensors),
    }
}

#[test]
fn what_is_packed_is_unpacked_and_nothing_else_is() {
    let sent = asking(vec![tensor(&[2, 3], 24)]);
    assert_eq!(call(&encode(&sent)).unwrap(), sent);
    let heading = heading(&encode(&sent)).unwrap();
    assert_eq!((heading.id, heading.version), (sent.id, sent.version));
    assert_eq!(heading.within_ms, sent.within_ms);
    let frames = [
        ToWorker::Cancel(Uuid::from_u128(3)),
        ToWorker::Call(ByteBuf::from(encode(&sent))),
    ];
    let message = pack(&frames);
    assert_eq!(unpack::<ToWorker>(&message).unwrap(), frames);
    assert!(unpack::<ToWorker>(&message[..message.len() - 1]).is_err());
    let longer = [message, vec![0]].concat();
    assert!(unpack::<ToWorker>(&longer).is_err());
}

#[test]
fn limits_hold_before_anything_is_made_of_a_message() {
    let many = pack(&vec![ToWorker::Cancel(Uuid::nil()); FRAMES_MAX + 1]);
    assert_eq!(unpack::<ToWorker>(&many), Err(Malformed::TooMany));
    let refused = |tensors| call(&encode(&asking(tensors))).is_err();
    assert!(refused(vec![tensor(&[2, 3], 23)]), "a byte is missing");
    assert!(refused(vec![tensor(&[u64::MAX, 2], 8)]), "sizes overflow");
    assert!(refused(vec![tensor(&[1], 4); TENSORS_MAX + 1]));
    assert!(refused(vec![tensor(&[1; DIMENSIONS_MAX + 1], 4)]));
    assert!(!refused(vec![tensor(&[1; DIMENSIONS_MAX], 4)]));
    let write = |there: usize, written, tokens_max, ends: usize| {
        let ask = Ask::Write(Write {
            tokens: vec![7; there],
            written,
            tokens_max,
            vocabulary_end: 9,
            ends: vec![8; ends],
            sampling: Sampling::default(),
        });
        call(&encode(&Call {
            ask,
            ..asking(Vec::new())
        }))
        .is_ok()
    };
    assert!(write(2, 1, 1, ENDS_MAX));
    assert!(!write(0, 0, 1, 0), "no prompt");
    assert!(!write(2, 2, 1, 0), "nothing but what was written");
    assert!(!write(2, 0, 0, 0), "nothing is asked for");
    assert!(!write(2, 0, u32::try_from(TEXT_TOKENS_MAX).unwrap() - 1, 0));
    assert!(!write(2, 0, 1, ENDS_MAX + 1));
    let long = Answer::fault(FaultCause::Worker, "x".repeat(crate::DETAIL_CHARS_MAX + 1));
    assert!(answer(&encode(&long)).is_ok(), "it is cut where it is made");
}
