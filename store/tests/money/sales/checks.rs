//! What must hold of a market after every step.

use std::collections::BTreeMap;

use alloy_primitives::Address;
use comptoir_domain::{
    offer::OfferKind,
    purchase::{Finality, PurchaseState},
};
use comptoir_store::{dataset_servings, ledger, receipts, releases};

use super::{BUYERS, MINIMUM, MONEY, Market, PPM, SELLER};
use crate::{harness::PLATFORM, movements};

impl Market {
    /// What was forfeited: to whom, and by whom.
    pub(super) async fn forfeited(&self) -> [BTreeMap<Address, u128>; 2] {
        let rows: Vec<(Vec<u8>, Vec<u8>, sqlx::types::BigDecimal)> = sqlx::query_as(
            "SELECT payer, owner, amount_base FROM held_proceeds WHERE state = 'forfeited'",
        )
        .fetch_all(&self.money.owner)
        .await
        .unwrap();
        let [mut to, mut by] = [const { BTreeMap::new() }; 2];
        for (payer, owner, base) in rows {
            let base: u128 = base.to_string().parse().unwrap();
            *to.entry(Address::from_slice(&payer)).or_default() += base;
            *by.entry(Address::from_slice(&owner)).or_default() += base;
        }
        [to, by]
    }

    /// What everybody has is what was deposited and what the leaves say.
    pub(super) async fn is_explained(&self) {
        let snapshot = movements::snapshot(&self.money).await;
        for (account, deposited) in [(BUYERS[0], MONEY), (BUYERS[1], MONEY), (SELLER, 0)] {
            let moved = movements::has(&snapshot, account) - deposited.cast_signed();
            let explained = movements::explained(&snapshot.receipts, account);
            assert_eq!(moved, explained, "{account}");
        }
    }

    /// Who ended what was read paid for its least time, and nobody else for more than was used; says how many paid more than for that.
    pub(super) async fn least_is_paid(&self) -> usize {
        let mut connection = self.money.owner.acquire().await.unwrap();
        let mut raised = 0;
        for it in self.purchases().await {
            let (Some(agreed), Some(charged)) = (it.seconds, it.charged) else {
                continue;
            };
            let passed = it.ended_at.unwrap() - it.starts_at.unwrap();
            let used = u32::try_from(passed.whole_seconds().max(0)).unwrap();
            let cost = |seconds: u32| match it.kind {
                OfferKind::Rent => it.price.times(seconds.into()).unwrap(),
                _ => it.price.part(seconds.into(), agreed.into()),
            };
            let was_read = dataset_servings::has_begun(&mut connection, it.id)
                .await
                .unwrap();
            let is_early = it.finality == Some(Finality::EndedByBuyer);
            let least = if was_read && is_early { MINIMUM } else { 0 };
            let due = cost(used.max(least).min(agreed));
            assert_eq!(charged, due, "{it:?}");
            raised += usize::from(charged > cost(used.min(agreed)));
        }
        raised
    }

    /// What must hold after every step.
    pub(super) async fn adds_up(&self) {
        let purchases = self.purchases().await;
        let mut connection = self.money.owner.acquire().await.unwrap();
        let asset = self.money.asset;
        let (mut held, mut charged) = (
            BTreeMap::<Address, u128>::new(),
            BTreeMap::<Address, u128>::new(),
        );
        for it in &purchases {
            let payer = it.payer.unwrap();
            if matches!(it.state, PurchaseState::Requested | PurchaseState::Granted) {
                *held.entry(payer).or_default() += it.amount.base();
            }
            let paid = it.charged.unwrap_or_default();
            assert_eq!(
                it.receipt.is_some(),
                !paid.is_zero(),
                "a charge has a receipt, and nothing else has: {it:?}"
            );
            if let Some(receipt) = it.receipt {
                let receipt = receipts::find(&mut connection, receipt)
                    .await
                    .unwrap()
                    .unwrap();
                assert_eq!((receipt.gross, receipt.payer), (paid, payer));
            }
            *charged.entry(payer).or_default() += paid.base();
        }
        let [to, by] = self.forfeited().await;
        let of = |map: &BTreeMap<Address, u128>, who| map.get(&who).copied().unwrap_or_default();
        for buyer in BUYERS {
            let it = ledger::balances(&mut connection, buyer, asset)
                .await
                .unwrap();
            assert_eq!(it.held.base(), of(&held, buyer));
            let rest = MONEY - of(&charged, buyer) + of(&to, buyer);
            assert_eq!(it.available.base() + it.held.base(), rest);
        }
        // One split shares all of it: what the seller has is rounded once over all sales.
        let gross: u128 = charged.values().sum();
        let seller = ledger::balances(&mut connection, SELLER, asset)
            .await
            .unwrap();
        // What is held back is not on its way to the chain.
        let queued = releases::queued_of(&mut connection, asset, SELLER).await;
        assert_eq!(queued.unwrap(), seller.available);
        let earned = seller.available.base() + seller.held_back.base() + of(&by, SELLER);
        assert_eq!(earned, gross * u128::from(1_000_000 - PPM) / 1_000_000);
        let house = ledger::house_balances(&mut connection, asset)
            .await
            .unwrap();
        let own = ledger::balances(&mut connection, PLATFORM, asset)
            .await
            .unwrap();
        let own = own.available.base() + own.held_back.base() + of(&by, PLATFORM);
        let dust = house.split_dust.base();
        assert_eq!(earned + house.fees.base() + own + dust, gross);
        assert!(house.split_dust.base() < 2);
    }
}
