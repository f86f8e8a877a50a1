//! Texts that are written: passed on as they come, and charged once they end. A worker that is lost is followed by another, which goes on where it ended.
//!
//! A text that fails costs nothing. Who hangs up pays for what was written until then.

use std::time::Duration;

use comptoir_domain::{
    atto::Atto,
    id::{CallId, ReceiptId},
    model::Usage,
};
use comptoir_text::{FinishReason, Generated, Generation};
use comptoir_wire::calls::{self as wire, Answer, Ask, Fault, FaultCause};
use tokio::{sync::mpsc, time::Instant};

use super::{
    Wish,
    answering::{CALL_TIMEOUT, note},
    asking::{Asking, Tries},
    hosts::Host,
    paying::{Means, Served, means},
};
use crate::{AppState, Problem, auth::Identity};

/// How long a text may take.
const TEXT_TIMEOUT: Duration = Duration::from_mins(10);

/// What comes of a text.
#[derive(Debug)]
pub(crate) enum Piece {
    /// More of it.
    Text(String),
    /// All of it was there.
    Over(Box<Written>),
    /// Nothing more comes, and nothing is charged.
    Failed(Box<Problem>),
}

/// A text that was written, and recorded.
#[derive(Debug)]
pub(crate) struct Written {
    pub finish: FinishReason,
    pub usage: Usage,
    pub cost: Atto,
    /// The receipt of the charge that it will be part of; `None`: it is free.
    pub receipt: Option<ReceiptId>,
}

/// A text as it comes. Dropping it ends it, which is charged as far as it was written.
#[derive(Debug)]
pub(crate) struct Pieces {
    pub id: CallId,
    first: Option<Piece>,
    rest: mpsc::UnboundedReceiver<Piece>,
}

impl Pieces {
    /// What comes next; the last is the end or a failure.
    pub(crate) async fn next(&mut self) -> Option<Piece> {
        match self.first.take() {
            Some(first) => Some(first),
            None => self.rest.recv().await,
        }
    }

    /// Waits for all of it.
    pub(crate) async fn whole(mut self) -> Result<(String, Written), Problem> {
        let mut text = String::new();
        loop {
            match self.next().await {
                Some(Piece::Text(piece)) => text.push_str(&piece),
                Some(Piece::Over(written)) => return Ok((text, *written)),
                Some(Piece::Failed(problem)) => return Err(*problem),
                None => return Err(aborted()),
            }
        }
    }
}

/// Has a text written: reserves what it costs at most, and gives the first piece once it is there.
///
/// # Errors
/// Where nothing is written at all.
pub(crate) async fn write(
    state: &AppState,
    caller: &Identity,
    wish: Wish,
) -> Result<Pieces, Problem> {
    let started = Instant::now();
    let most = wish.usage(wish.limits.tokens_max);
    let means = means(state, caller, &wish.callable, &most).await?;
    let id = CallId::generate();
    // Tokens are few and small, and no more come than were asked for: who reads slowly holds nobody up.
    let (pieces, mut rest) = mpsc::unbounded_channel();
    let writing = Writing {
        state: state.clone(),
        caller: caller.clone(),
        wish,
        id,
        started,
        pieces,
    };
    tokio::spawn(writing.run(means));
    match rest.recv().await {
        Some(Piece::Failed(problem)) => Err(*problem),
        None => Err(aborted()),
        first => Ok(Pieces { id, first, rest }),
    }
}

/// A text that is being written.
struct Writing {
    state: AppState,
    caller: Identity,
    wish: Wish,
    id: CallId,
    started: Instant,
    pieces: mpsc::UnboundedSender<Piece>,
}

/// How a text ended.
struct Ended {
    host: Host,
    tokens: u32,
    finish: FinishReason,
}

impl Writing {
    async fn run(self, means: Means) {
        let outcome = self.write_and_charge(means).await;
        note(&outcome, self.started);
        // Who hung up hears nothing of it.
        self.pieces
            .send(match outcome {
                Ok(written) => Piece::Over(Box::new(written)),
                Err(problem) => Piece::Failed(Box::new(problem)),
            })
            .ok();
    }

    async fn write_and_charge(&self, means: Means) -> Result<Written, Problem> {
        let callable = &self.wish.callable;
        let wrote = async {
            let ended = self.write().await?;
            let owner = self
                .state
                .calls
                .owners
                .address(&self.state, ended.host.owner);
            Ok((owner.await?, ended))
        };
        let (worker_owner, ended) = match wrote.await {
            Ok(wrote) => wrote,
            Err(problem) => {
                means.take_back(&self.state, &self.caller, callable).await;
                return Err(problem);
            }
        };
        let usage = self.wish.usage(ended.tokens);
        let served = Served {
            call: self.id,
            worker: ended.host.worker,
            worker_owner,
            usage,
            started: self.started,
        };
        let charged = means.charge(&self.state, &self.caller, callable, served);
        let charged = charged.await?;
        Ok(Written {
            finish: ended.finish,
            usage,
            cost: charged.cost,
            receipt: charged.receipt,
        })
    }

    /// Asks workers, one after the other, until the text ends.
    async fn write(&self) -> Result<Ended, Problem> {
        let until = self.started + TEXT_TIMEOUT;
        let wish = &self.wish;
        let mut text = Text {
            generation: Generation::new(&wish.tokenizer, wish.limits.clone()),
            tokens: wish.tokens.clone(),
        };
        let mut tries = Tries::new(&self.state.calls, self.id);
        loop {
            let ask = Ask::Write(text.ask(wish));
            let mut asking = tries.ask(&wish.callable, ask, until)?;
            match self.listen(&mut text, &mut asking, until).await {
                Ok(finish) => {
                    return Ok(Ended {
                        host: asking.host.clone(),
                        tokens: text.generation.tokens(),
                        finish,
                    });
                }
                Err(fault) => {
                    let host = asking.host.clone();
                    drop(asking);
                    tries.note(&host, &fault)?;
                }
            }
        }
    }

    /// Passes on what a worker writes, until the text ends or the worker fails.
    async fn listen(
        &self,
        text: &mut Text<'_>,
        asking: &mut Asking<'_>,
        until: Instant,
    ) -> Result<FinishReason, Fault> {
        loop {
            let next_until = until.min(Instant::now() + CALL_TIMEOUT);
            let (answer, is_last) = tokio::select! {
                came = asking.next(next_until) => came,
                () = self.pieces.closed() => {
                    return if text.generation.tokens() > 0 {
                        Ok(FinishReason::Length)
                    } else {
                        Err(fault(FaultCause::Late, "nobody waits for it any more"))
                    };
                }
            };
            let written = match answer {
                Answer::Written(written) => written,
                Answer::Fault(fault) => return Err(fault),
                Answer::Outputs(_) => {
                    return Err(fault(FaultCause::Worker, "it answers with tensors"));
                }
            };
            for token in written.tokens {
                let Generated { text, finish } = text.push(token, &self.wish)?;
                if !text.is_empty() {
                    // Who hung up is noticed above.
                    self.pieces.send(Piece::Text(text)).ok();
                }
                if let Some(finish) = finish {
                    return Ok(finish);
                }
            }
            if is_last {
                return Err(fault(FaultCause::Worker, "it ends before the text does"));
            }
        }
    }
}

/// What there is of a text.
struct Text<'a> {
    generation: Generation<'a>,
    /// Its prompt, and what was written.
    tokens: Vec<u32>,
}

impl Text<'_> {
    /// What a worker is to go on from.
    fn ask(&self, wish: &Wish) -> wire::Write {
        let written = self.generation.tokens();
        wire::Write {
            tokens: self.tokens.clone(),
            written,
            tokens_max: wish.limits.tokens_max.saturating_sub(written),
            vocabulary_end: wish.vocabulary_end,
            ends: wish.limits.ends.iter().copied().collect(),
            sampling: wish.sampling,
        }
    }

    fn push(&mut self, token: u32, wish: &Wish) -> Result<Generated, Fault> {
        let wrong = |detail: &str| fault(FaultCause::Worker, detail);
        if token >= wish.vocabulary_end {
            return Err(wrong("it writes a token that there is not"));
        }
        self.tokens.push(token);
        let pushed = self.generation.push(token);
        pushed.map_err(|error| wrong(&error.to_string()))
    }
}

fn fault(cause: FaultCause, detail: &str) -> Fault {
    Fault {
        cause,
        detail: detail.to_owned(),
    }
}

/// Its task ended without a word.
fn aborted() -> Problem {
    Problem::internal(&std::io::Error::other("a text was not written to its end"))
}
