//! Random histories of calls: whatever is opened, recorded, recorded again, lost with its transaction, closed and abandoned, the books add up after
//! every step, and the leaves explain them.

use std::collections::{BTreeMap, HashMap, HashSet};

use alloy_primitives::Address;
use comptoir_domain::{
    atto::Atto,
    bill::Explanation,
    digest::Sha256,
    id::{AllowanceId, ApiKeyId, CallId, ModelId, ReceiptId, UsageWindowId},
    model::{Tariff, Usage},
    price::Rate,
    usage::HEADER,
};
use comptoir_store::{
    allowances::{self, AllowanceError},
    codec, ledger, receipts, spending,
    usage::{self, Recorded, UsageEvent},
};
use sqlx::{PgPool, types::BigDecimal};
use time::{Duration, OffsetDateTime};

use crate::{
    harness::{ALICE, NOW, PLATFORM},
    movements,
    sales::Dice,
    usage::{CREATOR, Called, Calling, OWNERS},
};

const MONEY: u128 = 900;
const LIMIT: u128 = 150;
const PAYEES: [Address; 3] = [CREATOR, OWNERS[0], OWNERS[1]];

/// What the test knows of an allowance.
struct Opened {
    amount: u128,
    key: Option<ApiKeyId>,
    drawn: Atto,
    is_open: bool,
    kept_until: OffsetDateTime,
}

struct History {
    it: Calling,
    key: ApiKeyId,
    models: Vec<Called>,
    allowances: Vec<(AllowanceId, Opened)>,
    taken: Vec<UsageEvent>,
    now: OffsetDateTime,
    dice: Dice,
}

fn tariff(call: u128, row: u128, madds: u128) -> Tariff {
    let rate = |nano| Rate::from_nano(nano).unwrap();
    Tariff {
        call_nano: rate(call),
        row_nano: rate(row),
        giga_madds_nano: rate(madds),
        ..Tariff::default()
    }
}

fn sum(costs: impl Iterator<Item = Atto>) -> Atto {
    costs.fold(Atto::ZERO, |sum, it| sum.checked_add(it).unwrap())
}

impl History {
    async fn new(db: PgPool, seed: u64) -> Self {
        let it = Calling::new(db).await;
        it.money.deposit(ALICE, MONEY).await;
        let mut models = Vec::new();
        for tariff in [
            tariff(7_000_000_000, 0, 0),
            tariff(370_000_001, 13, 0),
            tariff(0, 250_000_000, 777_777_777_777),
            tariff(900_000_000, 0, 1),
        ] {
            models.push(it.model(tariff).await);
        }
        Self {
            key: it.key(LIMIT).await,
            it,
            models,
            allowances: vec![],
            taken: vec![],
            now: NOW,
            dice: Dice(seed),
        }
    }

    fn pick(&mut self, of: usize) -> usize {
        usize::try_from(self.dice.roll(of as u64)).unwrap()
    }

    async fn open(&mut self) -> bool {
        let key = (self.dice.roll(3) == 0).then_some(self.key);
        // Sometimes more than there is.
        let most = [9, 9, 9, 400][self.pick(4)];
        let least = u128::from(self.dice.roll(most));
        // Often so little that it is used up to the last unit.
        let wanted = u128::from(if self.dice.roll(2) == 0 {
            self.dice.roll(5)
        } else {
            self.dice.roll(200)
        });
        match self.it.open(key, least, wanted, self.now).await {
            Ok((id, amount)) => {
                let opened = Opened {
                    amount: amount.base(),
                    key,
                    drawn: Atto::ZERO,
                    is_open: true,
                    kept_until: self.now + Duration::try_from(allowances::ALLOWANCE_GRACE).unwrap(),
                };
                self.allowances.push((id, opened));
                true
            }
            Err(AllowanceError::InsufficientFunds { .. } | AllowanceError::KeyLimit { .. }) => {
                false
            }
            Err(error) => panic!("{error:?}"),
        }
    }

    fn event(&mut self) -> UsageEvent {
        let place = self.pick(self.allowances.len());
        let model = self.pick(4);
        let called = self.models[model];
        let usage = Usage {
            rows: 1 + self.dice.roll(4),
            input_tokens: 0,
            output_tokens: 0,
            madds: self.dice.roll(1_000_000).into(),
        };
        let (id, opened) = &self.allowances[place];
        let event = self.it.event(&called, *id, opened.key, usage);
        let worker_owner = OWNERS[self.pick(2)];
        UsageEvent {
            worker_owner,
            ..event
        }
    }

    /// A group of fresh calls, some from before, and some that lie about their cost. One group of four is lost with its transaction.
    async fn record(&mut self) {
        let mut events = Vec::new();
        for _ in 0..=self.dice.roll(12) {
            match self.dice.roll(8) {
                0 if !self.taken.is_empty() => {
                    let again = self.pick(self.taken.len());
                    events.push(self.taken[again]);
                }
                1 => {
                    let mut event = self.event();
                    event.cost = event.cost.checked_add("1".parse().unwrap()).unwrap();
                    events.push(event);
                }
                _ => events.push(self.event()),
            }
        }
        let is_lost = self.dice.roll(4) == 0;
        let mut tx = self.it.money.api.begin().await.unwrap();
        let said = usage::record(&mut tx, &events).await.unwrap();
        if is_lost {
            drop(tx);
            return;
        }
        tx.commit().await.unwrap();
        for (event, said) in events.iter().zip(said) {
            let is_taken = said != Recorded::Refused;
            assert_eq!(is_taken, self.expect(event), "{event:?}");
        }
    }

    /// Is this event taken? Then it is counted.
    fn expect(&mut self, event: &UsageEvent) -> bool {
        if self.taken.contains(event) {
            return true;
        }
        let model = self.models.iter().find(|it| it.model == event.model);
        let allowance = self.allowances.iter_mut();
        let (_, opened) = allowance
            .into_iter()
            .find(|(id, _)| Some(*id) == event.allowance)
            .unwrap();
        let drawn = opened.drawn.checked_add(event.cost).unwrap();
        let is_taken = opened.is_open
            && model.unwrap().tariff.cost(&event.usage) == Some(event.cost)
            && drawn.ceil().base() <= opened.amount;
        if is_taken {
            opened.drawn = drawn;
            self.taken.push(*event);
        }
        is_taken
    }

    async fn close(&mut self, place: usize) {
        let (id, opened) = &mut self.allowances[place];
        let mut tx = self.it.money.api.begin().await.unwrap();
        let first = allowances::close(&mut tx, *id, self.now).await.unwrap();
        if opened.is_open && self.dice.roll(3) == 0 {
            // The process died before its commit.
            drop(tx);
            return;
        }
        tx.commit().await.unwrap();
        opened.is_open = false;
        assert_eq!(self.it.close(*id).await.unwrap().len(), first.len());
    }

    /// Time passes; processes that were silent are tidied up after, one at a time.
    async fn tidy(&mut self) {
        self.now += Duration::seconds(i64::try_from(self.dice.roll(90)).unwrap());
        let mut conn = self.it.money.api.acquire().await.unwrap();
        let abandoned = allowances::abandoned(&mut conn, self.now, 1_000).await;
        drop(conn);
        let abandoned: HashSet<_> = abandoned.unwrap().into_iter().collect();
        for place in 0..self.allowances.len() {
            let (id, opened) = &self.allowances[place];
            let is_due = opened.is_open && opened.kept_until < self.now;
            assert_eq!(abandoned.contains(id), is_due);
            if is_due {
                self.close(place).await;
            }
        }
    }

    async fn step(&mut self) -> &'static str {
        let name = match self.dice.roll(9) {
            0 | 1 => {
                if self.open().await {
                    "opened"
                } else {
                    "refused"
                }
            }
            2..=6 if !self.allowances.is_empty() => {
                self.record().await;
                "recorded"
            }
            7 if !self.allowances.is_empty() => {
                let place = self.pick(self.allowances.len());
                self.close(place).await;
                "closed"
            }
            _ => {
                self.tidy().await;
                "tidied"
            }
        };
        self.adds_up().await;
        name
    }

    /// What each payee was credited, by receipts that are computed again, and what was charged for each price.
    async fn charged(&self) -> (u128, HashMap<ModelId, u128>) {
        let ids: Vec<uuid::Uuid> = sqlx::query_scalar("SELECT receipt_id FROM receipts")
            .fetch_all(&self.it.money.owner)
            .await
            .unwrap();
        let ids: Vec<_> = ids.into_iter().map(ReceiptId).collect();
        let mut conn = self.it.money.owner.acquire().await.unwrap();
        let (mut charged, mut of) = (0, HashMap::new());
        for receipt in receipts::list(&mut conn, &ids).await.unwrap() {
            let Explanation::Calls(bill) = &receipt.bill else {
                panic!("only calls are charged here")
            };
            assert_eq!(bill.recompute(), Ok(()));
            let again = by_events(bill.window, &self.taken, &mut conn).await;
            assert_eq!(again.2, bill.counted.calls);
            assert_eq!((again.0, again.1), (bill.amount_atto, receipt.result));
            charged += receipt.gross.base();
            *of.entry(bill.model).or_default() += receipt.gross.base();
        }
        (charged, of)
    }

    async fn adds_up(&self) {
        let asset = self.it.money.asset;
        // What was drawn is what was taken, in allowances and in windows.
        let rows: Vec<(uuid::Uuid, BigDecimal, i64, BigDecimal)> = sqlx::query_as(
            "SELECT allowance_id, drawn_atto, coalesce(sum(calls), 0)::bigint, coalesce(sum(cost_atto), 0)
             FROM allowances LEFT JOIN usage_windows USING (allowance_id) GROUP BY allowance_id",
        )
        .fetch_all(&self.it.money.owner)
        .await
        .unwrap();
        assert_eq!(rows.len(), self.allowances.len());
        for (id, drawn, calls, cost) in rows {
            let known = self.allowances.iter().find(|(it, _)| it.0 == id);
            let (_, opened) = known.unwrap();
            assert_eq!(drawn, cost);
            assert_eq!(codec::to_atto("drawn_atto", &drawn).unwrap(), opened.drawn);
            let taken = self.taken.iter();
            let taken = taken.filter(|it| it.allowance == Some(AllowanceId(id)));
            assert_eq!(usize::try_from(calls).unwrap(), taken.count());
        }
        // What is held is what is open; what is gone was charged.
        let (charged, of) = self.charged().await;
        let mut conn = self.it.money.owner.acquire().await.unwrap();
        let alice = ledger::balances(&mut conn, ALICE, asset).await.unwrap();
        let open = self.allowances.iter().filter(|(_, it)| it.is_open);
        let held: u128 = open.map(|(_, it)| it.amount).sum();
        assert_eq!(alice.held.base(), held);
        assert_eq!(alice.available.base() + held + charged, MONEY);
        // Each price is charged for what was used of it, but for what no allowance covered.
        let closed: HashSet<_> = self
            .allowances
            .iter()
            .filter(|(_, it)| !it.is_open)
            .map(|(id, _)| Some(*id))
            .collect();
        let mut used: BTreeMap<ModelId, Atto> = BTreeMap::new();
        for event in self
            .taken
            .iter()
            .filter(|it| closed.contains(&it.allowance))
        {
            let sum = used.entry(event.model).or_default();
            *sum = sum.checked_add(event.cost).unwrap();
        }
        for (model, used) in &used {
            let charged = of.get(model).copied().unwrap_or_default();
            let owed = used.floor().base().checked_sub(charged).unwrap();
            assert!(owed <= 3, "{owed} units are owed for one price");
        }
        // Everything that was charged is somebody's, or dust of a split.
        let mut earned = 0;
        for payee in PAYEES {
            let it = ledger::balances(&mut conn, payee, asset).await.unwrap();
            earned += it.available.base();
        }
        let house = ledger::house_balances(&mut conn, asset).await.unwrap();
        let dust = house.split_dust.base();
        assert_eq!(earned + house.fees.base() + dust, charged);
        assert!(dust < 6, "two splits of three parties");
        let spent = spending::spent(&mut conn, self.key, NOW.date()).await;
        let spent = spent.unwrap().base();
        assert!(spent <= LIMIT, "{spent} of {LIMIT}");
    }

    async fn is_explained(&self) {
        let snapshot = movements::snapshot(&self.it.money).await;
        let own = [ALICE, PLATFORM].into_iter().chain(PAYEES);
        for account in own {
            let deposited = if account == ALICE { MONEY } else { 0 };
            let moved = movements::has(&snapshot, account) - deposited.cast_signed();
            // Dust of splits is in the platform's leaf.
            if account != PLATFORM {
                let explained = movements::explained(&snapshot.receipts, account);
                assert_eq!(moved, explained, "{account}");
            }
        }
        assert!(snapshot.receipts.iter().all(|it| it.kind == 6));
    }
}

/// What the calls of a window cost, and the digest of its usage file, by what the test knows of them.
async fn by_events(
    window: UsageWindowId,
    taken: &[UsageEvent],
    conn: &mut sqlx::PgConnection,
) -> (Atto, Sha256, u64) {
    let by_id: HashMap<CallId, &UsageEvent> = taken.iter().map(|it| (it.call, it)).collect();
    let records = usage::events_of(conn, window, None, 10_000).await.unwrap();
    let cost = sum(records.iter().map(|it| by_id[&it.call].cost));
    let mut file = format!("{HEADER}\n");
    for record in &records {
        file += &record.to_string();
        file.push('\n');
    }
    (cost, Sha256::of(file.as_bytes()), records.len() as u64)
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn histories_of_calls_add_up_after_every_step_and_leaves_explain_them(db: PgPool) {
    let mut history = History::new(db, 20_261_123).await;
    let mut seen: BTreeMap<&str, usize> = BTreeMap::new();
    for _ in 0..160 {
        *seen.entry(history.step().await).or_default() += 1;
    }
    for place in 0..history.allowances.len() {
        while history.allowances[place].1.is_open {
            history.close(place).await;
        }
    }
    history.adds_up().await;
    history.is_explained().await;
    for what in ["opened", "refused", "recorded", "closed", "tidied"] {
        assert!(seen.contains_key(what), "{seen:?}");
    }
    assert!(history.taken.len() > 60, "{}", history.taken.len());
}
