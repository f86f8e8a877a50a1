//! The settler against a real Postgres and a real chain (anvil).

#[cfg(test)]
mod audit_log;
#[cfg(test)]
mod batches;
#[cfg(test)]
mod caps;
#[cfg(test)]
mod competitors;
#[cfg(test)]
mod contradictions;
#[cfg(test)]
mod costs;
#[cfg(test)]
mod crashes;
#[cfg(test)]
mod deploying;
#[cfg(test)]
mod deposits;
#[cfg(test)]
mod every_crash;
#[cfg(test)]
mod exits;
#[cfg(test)]
mod faults;
#[cfg(test)]
mod harness;
#[cfg(test)]
mod quorum;
#[cfg(test)]
mod recovery;
#[cfg(test)]
mod reorgs;
#[cfg(test)]
mod ring;
#[cfg(test)]
mod sending;
#[cfg(test)]
mod webhooks;
