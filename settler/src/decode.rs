//! Logs of the contract as events. Only the emitter's address and the decoded event count, never a flag of the node's.

use alloy::{primitives::U256, rpc::types::Log, sol_types::SolEventInterface as _};
use comptoir_contracts_bindings::Settlement::{self, SettlementEvents as Raw};
use comptoir_domain::settlement::event::{Event, Logged};

use crate::chain::ChainError;

/// The event of a log, with its sequence number; `None` for events that carry none (roles).
pub fn logged(log: &Log) -> Result<Option<Logged>, ChainError> {
    let (Some(block_number), Some(block_hash), Some(tx_hash), Some(log_index)) = (
        log.block_number,
        log.block_hash,
        log.transaction_hash,
        log.log_index,
    ) else {
        return Err(ChainError::Malformed(
            "a log without its place on the chain",
        ));
    };
    let Ok(raw) = Raw::decode_log(&log.inner) else {
        return Err(ChainError::Malformed(
            "a log that is no event of the contract",
        ));
    };
    let Some((event_seq, event)) = event(&raw.data)? else {
        return Ok(None);
    };
    Ok(Some(Logged {
        block_number,
        block_hash,
        tx_hash,
        log_index,
        event_seq,
        event,
    }))
}

fn event(raw: &Raw) -> Result<Option<(u64, Event)>, ChainError> {
    let numbered = match raw {
        Raw::Deposited(it) => (it.eventSeq, deposited(it)?),
        Raw::Claimed(it) => (it.eventSeq, claimed(it)?),
        Raw::Escaped(it) => (it.eventSeq, escaped(it)?),
        Raw::BatchCommitted(it) => (it.eventSeq, committed(it)),
        Raw::BatchCancelled(it) => (it.eventSeq, cancelled(it)),
        Raw::ExitRequested(it) => (it.eventSeq, exit_requested(it)),
        Raw::ExitAnswered(it) => {
            let account = it.account;
            (it.eventSeq, Event::ExitAnswered { account })
        }
        Raw::Frozen(it) => (it.eventSeq, Event::Frozen),
        Raw::Paused(it) => {
            let (bits, until) = (it.bits, it.until);
            (it.eventSeq, Event::Paused { bits, until })
        }
        Raw::Unpaused(it) => (it.eventSeq, other("Unpaused")),
        Raw::CapsChanged(it) => (it.eventSeq, other("CapsChanged")),
        Raw::WindowsChanged(it) => (it.eventSeq, other("WindowsChanged")),
        Raw::Rescued(it) => (it.eventSeq, other("Rescued")),
        Raw::RoleAdminChanged(_) | Raw::RoleGranted(_) | Raw::RoleRevoked(_) => return Ok(None),
    };
    Ok(Some(numbered))
}

fn deposited(it: &Settlement::Deposited) -> Result<Event, ChainError> {
    Ok(Event::Deposited {
        account: it.account,
        from: it.from,
        deposit_seq: it.depositSeq,
        amount: narrow(it.amount)?,
    })
}

fn claimed(it: &Settlement::Claimed) -> Result<Event, ChainError> {
    Ok(Event::Claimed {
        account: it.account,
        batch: it.id,
        amount: narrow(it.amount)?,
        cumulative: narrow(it.cumulative)?,
    })
}

fn escaped(it: &Settlement::Escaped) -> Result<Event, ChainError> {
    Ok(Event::Escaped {
        account: it.account,
        amount: narrow(it.amount)?,
        cumulative: narrow(it.cumulative)?,
    })
}

const fn committed(it: &Settlement::BatchCommitted) -> Event {
    Event::BatchCommitted {
        batch: it.id,
        hash: it.hash,
        active_at: it.activeAt,
    }
}

const fn cancelled(it: &Settlement::BatchCancelled) -> Event {
    Event::BatchCancelled {
        batch: it.id,
        hash: it.hash,
        generation: it.generation,
    }
}

const fn exit_requested(it: &Settlement::ExitRequested) -> Event {
    Event::ExitRequested {
        account: it.account,
        due_at: it.dueAt,
    }
}

fn other(name: &str) -> Event {
    Event::Other {
        name: name.to_owned(),
    }
}

fn narrow(amount: U256) -> Result<u128, ChainError> {
    amount
        .try_into()
        .map_err(|_| ChainError::Malformed("an amount above 2^128"))
}
