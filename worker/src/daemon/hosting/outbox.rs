//! What is to be sent to the scheduler: answers, and what is hosted when that changes.

use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
};

use comptoir_wire::calls::{Answer, Fault, FromWorker, encode};
use serde_bytes::ByteBuf;
use tokio::sync::Notify;
use uuid::Uuid;

use crate::engine::host::{FRAME_BYTES, Frame, fitting};

/// Bytes that wait at most before children have to wait.
const BYTES_MAX: usize = 64 << 20;

impl Frame for FromWorker {
    fn bytes(&self) -> usize {
        match self {
            Self::Answer { answer, .. } => answer.len() + FRAME_BYTES,
            Self::Hosting(hosting) => hosting.loaded.len() * FRAME_BYTES + FRAME_BYTES,
        }
    }
}

/// The outbox of a worker.
#[derive(Debug, Default)]
pub struct Outbox {
    frames: Mutex<Frames>,
    /// Something is in it.
    filled: Notify,
    /// Something has left it.
    emptied: Notify,
}

#[derive(Debug, Default)]
struct Frames {
    answers: VecDeque<FromWorker>,
    bytes: usize,
    /// Whether what is hosted is to be told.
    tell_hosting: bool,
}

impl Outbox {
    fn lock(&self) -> MutexGuard<'_, Frames> {
        self.frames.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A new connection: what was for another goes, and what is hosted is told first.
    pub fn open(&self) {
        *self.lock() = Frames {
            tell_hosting: true,
            ..Frames::default()
        };
        self.filled.notify_one();
        self.emptied.notify_waiters();
    }

    /// What is hosted has changed.
    pub fn tell_hosting(&self) {
        self.lock().tell_hosting = true;
        self.filled.notify_one();
    }

    /// Whoever waits for something looks again.
    pub fn poke(&self) {
        self.filled.notify_one();
    }

    /// Answers calls: whether nothing more comes for each, and what comes.
    pub fn add(&self, answers: impl IntoIterator<Item = (Uuid, bool, ByteBuf)>) {
        let mut frames = self.lock();
        for (call, is_last, answer) in answers {
            let frame = FromWorker::Answer {
                call,
                is_last,
                answer,
            };
            frames.bytes += frame.bytes();
            frames.answers.push_back(frame);
        }
        drop(frames);
        self.filled.notify_one();
    }

    /// Answers calls with what went wrong.
    pub fn add_fault(&self, calls: impl IntoIterator<Item = Uuid>, fault: &Fault) {
        let answer = encode(&Answer::Fault(fault.clone()));
        let answers = calls.into_iter();
        self.add(answers.map(|call| (call, true, ByteBuf::from(answer.clone()))));
    }

    /// Waits until there is something.
    pub async fn filled(&self) {
        self.filled.notified().await;
    }

    /// Waits until there is room.
    pub async fn room(&self) {
        loop {
            let emptied = self.emptied.notified();
            if self.lock().bytes < BYTES_MAX {
                return;
            }
            emptied.await;
        }
    }

    /// Is it to be told what is hosted? Once.
    pub fn takes_hosting(&self) -> bool {
        std::mem::take(&mut self.lock().tell_hosting)
    }

    /// Answers for the next message, if there are any.
    pub fn take(&self) -> Vec<FromWorker> {
        let mut frames = self.lock();
        let count = fitting(frames.answers.make_contiguous());
        let taken: Vec<FromWorker> = frames.answers.drain(..count).collect();
        frames.bytes -= taken.iter().map(Frame::bytes).sum::<usize>();
        drop(frames);
        self.emptied.notify_waiters();
        taken
    }
}
