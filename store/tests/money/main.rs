//! The ledger and everything that moves money through it, each path in the database role of its service.

#[cfg(test)]
mod blocked;
#[cfg(test)]
mod contributions;
#[cfg(test)]
mod deposits;
#[cfg(test)]
mod forfeits;
#[cfg(test)]
mod guards;
#[cfg(test)]
mod harness;
#[cfg(test)]
mod histories;
#[cfg(test)]
mod kinds;
#[cfg(test)]
mod model;
#[cfg(test)]
mod movements;
#[cfg(test)]
mod references;
#[cfg(test)]
mod refunds;
#[cfg(test)]
mod releases;
#[cfg(test)]
mod sales;
#[cfg(test)]
mod settling;
#[cfg(test)]
mod tenants;
#[cfg(test)]
mod usage;
#[cfg(test)]
mod usage_histories;
#[cfg(test)]
mod vetoes;
