//! Jobs that read files of datasets: what a worker is given, when it is not, and who is paid.

use comptoir_devchain::wait_for_a_lock;
use comptoir_domain::{
    amount::Amount,
    bill::DataPrice,
    digest::Sha256,
    envelope::{self, Chunk, PartKey},
    id::{DatasetFileId, PurchaseId},
    job::{Cause, JobSpec, JobState, Tier},
    offer::{self, OfferKind},
    purchase::{Finality, PurchaseState},
};
use comptoir_scheduler::stub::StubError;
use comptoir_store::{
    blobs,
    dataset_inputs::QuotedData,
    jobs::CreateError,
    offers::{self, NewOffer},
    purchases::{self, Due, EndError, NewPurchase},
    withheld_results::{self, Released},
};
use comptoir_wire::dataset::SealedDataset;
use sqlx::PgPool;
use time::Duration;
use uuid::Uuid;

use crate::{
    harness::{Bench, Client, PLATFORM, base, compute, held, inference, lease, now, training},
    sealing::{self, Sealed, Terms},
};

const OPEN: Terms = Terms {
    price: 1_001,
    platform_ppm: 100_000,
    output_bytes_max: 1 << 20,
    is_released_by_seller: false,
};
pub const SELLER: u8 = 0x5e;

/// The file of every dataset here: three parts, the last one short.
fn file() -> Vec<u8> {
    (0..150_000_u32).map(|at| (at % 251) as u8).collect()
}

/// A dataset that everybody may compute on, and what a job is quoted for it.
pub async fn offered(bench: &Bench) -> (Sealed, QuotedData) {
    offered_on(bench, OPEN).await
}

async fn offered_on(bench: &Bench, terms: Terms) -> (Sealed, QuotedData) {
    let seller = bench.account(SELLER).await.account;
    let sealed = sealing::publish(&bench.owner, &bench.state, seller, &file(), now()).await;
    let offer = sealing::offer(&bench.owner, bench.asset, &sealed, terms, now()).await;
    let price = DataPrice {
        offer,
        number: 1,
        price: base(terms.price.into()),
        platform_ppm: terms.platform_ppm.unsigned_abs(),
    };
    let quoted = QuotedData {
        version: sealed.version,
        price: Some(price),
    };
    (sealed, quoted)
}

/// The same job, on the dataset's file.
pub fn reading(dataset: &Sealed, mut spec: JobSpec) -> JobSpec {
    let (inputs, target) = match &mut spec {
        JobSpec::Training(it) => (&mut it.inputs, Some(&mut it.target)),
        JobSpec::Inference(it) => (&mut it.inputs, None),
    };
    for tensor in inputs.values_mut().chain(target) {
        tensor.blob = dataset.sha256;
        tensor.dataset_version = Some(dataset.version);
    }
    spec
}

pub fn code<T: std::fmt::Debug>(refused: Result<T, StubError>) -> String {
    refused.unwrap_err().code().to_owned()
}

/// What a worker makes of a sealed part.
fn opened(dataset: &SealedDataset, number: u32, mut sealed: Vec<u8>) -> Vec<u8> {
    let file = &dataset.files[0];
    let place = file.part(dataset.version_id, number).unwrap();
    let key = PartKey::derive(&dataset.key.0, &place);
    let length = file.part_length(number).unwrap();
    let step = usize::try_from(envelope::CHUNK_BYTES + envelope::TAG_BYTES).unwrap();
    let mut plain = Vec::new();
    for (number, chunk) in (0..).zip(sealed.chunks_mut(step)) {
        let is_last = number + 1 == envelope::chunks(length);
        plain.extend_from_slice(key.open(Chunk { number, is_last }, chunk).unwrap());
    }
    plain
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_worker_opens_the_dataset_of_its_job_for_as_long_as_its_lease_lives(db: PgPool) {
    let bench = Bench::new(db).await;
    let client = bench.client().await;
    let (dataset, data) = offered(&bench).await;
    let spec = reading(&dataset, inference());
    bench
        .submit_on(client, &spec, Tier::None, data)
        .await
        .unwrap();
    let (worker, other) = (bench.worker(1).await, bench.worker(2).await);
    let leased = lease(&worker).await;
    let blobs: Vec<Sha256> = leased.blobs.iter().map(|it| it.sha256).collect();
    assert_eq!(blobs, [spec.program()], "a file of a dataset is no blob");
    let mine = held(&leased);
    let sealed = worker.open_dataset(mine).await.unwrap();
    assert_eq!(sealed.version_id, dataset.version);
    assert_eq!((sealed.files.len(), dataset.parts), (1, 3));
    let mut plain = Vec::new();
    for number in 0..dataset.parts {
        let part = worker.part(mine, dataset.file, number).await.unwrap();
        plain.extend(opened(&sealed, number, part.to_vec()));
    }
    assert_eq!(plain, file());
    // The digest is no way around: it is no blob of anybody's.
    assert_eq!(
        code(worker.download(mine, dataset.sha256).await),
        "not_found"
    );
    assert_eq!(code(worker.part(mine, dataset.file, 3).await), "not_found");
    let unnamed = DatasetFileId::generate();
    assert_eq!(code(worker.part(mine, unnamed, 0).await), "not_found");
    assert_eq!(code(other.open_dataset(mine).await), "not_found");
    assert_eq!(code(other.part(mine, dataset.file, 0).await), "not_found");
    bench.pass_lease(leased.attempt_id).await;
    assert_eq!(code(worker.open_dataset(mine).await), "stale_lease");
    let part = worker.part(mine, dataset.file, 0).await;
    assert_eq!(code(part), "stale_lease");
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_job_that_reads_no_dataset_opens_none(db: PgPool) {
    let bench = Bench::new(db).await;
    let client = bench.client().await;
    let (dataset, _) = offered(&bench).await;
    bench.submit(client, &inference(), Tier::None).await;
    let worker = bench.worker(1).await;
    let mine = held(&lease(&worker).await);
    assert_eq!(code(worker.open_dataset(mine).await), "not_found");
    let part = worker.part(mine, dataset.file, 0).await;
    assert_eq!(code(part), "not_found");
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn the_seller_is_paid_in_the_charge_and_the_receipt_that_pay_the_workers(db: PgPool) {
    let bench = Bench::new(db).await;
    let client = bench.client().await;
    let (dataset, data) = offered(&bench).await;
    let spec = reading(&dataset, inference());
    let (one, two) = (bench.worker(1).await, bench.worker(2).await);
    let (mut charged, mut works) = (0, Vec::new());
    for _ in 0..2 {
        let job = bench.submit_on(client, &spec, Tier::Replicated, data);
        let job = job.await.unwrap();
        compute(&[(&one, &[1.0]), (&two, &[1.0])]).await;
        assert_eq!(bench.rule().await, 1);
        let receipt = bench.receipt(job).await;
        let bill = receipt.job_bill().unwrap();
        assert_eq!(bill.recompute(&bill.meter, &bill.price), Ok(()));
        let of_data = bill.data.as_ref().unwrap();
        assert_eq!(of_data.terms, data.price.unwrap());
        assert_ne!(of_data.split_version, receipt.split_version);
        charged += receipt.gross.base();
        works.push(receipt.gross.base() - 1_001);
        // The house and two workers; then the house and the seller.
        let payees: Vec<u8> = receipt.shares.iter().map(|it| it.payee[0]).collect();
        assert_eq!(payees, [PLATFORM[0], 1, 2, PLATFORM[0], SELLER]);
    }
    // 1,001 and 1,001, nine tenths of each: what does not divide the first time is in the second.
    let seller = bench
        .available(alloy_primitives::Address::repeat_byte(SELLER))
        .await;
    assert_eq!(seller, 1_801);
    assert_eq!(
        bench.available(client.address).await,
        crate::harness::BUDGET - charged
    );
    assert_eq!(works[0], works[1]);
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_right_that_ended_since_the_quote_makes_no_job(db: PgPool) {
    let bench = Bench::new(db).await;
    let client = bench.client().await;
    let (dataset, data) = offered(&bench).await;
    close_offers(&bench).await;
    let spec = reading(&dataset, inference());
    let refused = bench.submit_on(client, &spec, Tier::None, data).await;
    assert!(
        matches!(refused, Err(CreateError::DataRightEnded)),
        "{refused:?}"
    );
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_right_that_ended_since_the_submission_ends_the_job_for_nothing_and_blames_nobody(
    db: PgPool,
) {
    let bench = Bench::new(db).await;
    let client = bench.client().await;
    let (dataset, data) = offered(&bench).await;
    let spec = reading(&dataset, inference());
    let job = bench.submit_on(client, &spec, Tier::Sampled, data);
    let job = job.await.unwrap();
    close_offers(&bench).await;
    let worker = bench.worker(1).await;
    let leased = lease(&worker).await;
    assert_eq!(
        code(worker.open_dataset(held(&leased)).await),
        "stale_lease"
    );
    bench.assert_refunded(client, job, JobState::Failed).await;
    let failure = bench.job(client, job).await.failure.unwrap();
    assert_eq!(
        (failure.cause, failure.code.as_str()),
        (Cause::Client, "data_right_ended")
    );
    assert_eq!(bench.attempt(leased.attempt_id).await.0, "cancelled");
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn who_bought_the_data_computes_on_it_for_nothing_and_cannot_give_it_back_then(db: PgPool) {
    let bench = Bench::new(db).await;
    let client = bench.client().await;
    let (dataset, data) = offered(&bench).await;
    let purchase = bought(&bench, client.account.0, &dataset).await;
    let data = QuotedData {
        price: None,
        ..data
    };
    let spec = reading(&dataset, inference());
    let job = bench.submit_on(client, &spec, Tier::None, data);
    let job = job.await.unwrap();
    let worker = bench.worker(1).await;
    let leased = lease(&worker).await;
    worker.open_dataset(held(&leased)).await.unwrap();
    let served = async || -> Vec<Uuid> {
        let served = sqlx::query_scalar("SELECT purchase_id FROM purchase_servings");
        served.fetch_all(&bench.owner).await.unwrap()
    };
    assert!(served().await.is_empty(), "no byte has left yet");
    worker.part(held(&leased), dataset.file, 0).await.unwrap();
    assert_eq!(served().await, [purchase]);
    let plain = bench.submit(client, &inference(), Tier::None).await;
    let holds = [job, plain].map(|job| bench.job(client, job));
    let [on_data, without] = holds;
    assert_eq!(on_data.await.hold, without.await.hold);
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn what_a_job_read_is_not_given_back_and_is_charged(db: PgPool) {
    let bench = Bench::new(db).await;
    let client = bench.client().await;
    let (dataset, _) = offered(&bench).await;
    let id = sold(&bench, client, &dataset).await;
    let refund = async || {
        let mut tx = bench.owner.begin().await.unwrap();
        let purchase = purchases::lock(&mut tx, id).await.unwrap().unwrap();
        let back = purchases::refund_to_buyer(&mut tx, &purchase, now()).await;
        tx.rollback().await.unwrap();
        back
    };
    refund().await.unwrap();
    let spec = reading(&dataset, inference());
    let data = QuotedData {
        version: dataset.version,
        price: None,
    };
    let job = bench.submit_on(client, &spec, Tier::None, data);
    job.await.unwrap();
    let worker = bench.worker(1).await;
    let leased = lease(&worker).await;
    worker.open_dataset(held(&leased)).await.unwrap();
    worker.part(held(&leased), dataset.file, 0).await.unwrap();
    let refused = refund().await;
    assert!(matches!(refused, Err(EndError::Served)), "{refused:?}");
    let mut tx = bench.owner.begin().await.unwrap();
    let due = purchases::due(&mut tx, now(), 10).await.unwrap();
    assert_eq!(due, [Due::Served(id)]);
    purchases::step(&mut tx, due[0], now()).await.unwrap();
    let settled = purchases::lock(&mut tx, id).await.unwrap().unwrap();
    tx.commit().await.unwrap();
    assert_eq!(
        (settled.state, settled.finality),
        (PurchaseState::Settled, Some(Finality::Served))
    );
    let seller = bench
        .available(alloy_primitives::Address::repeat_byte(SELLER))
        .await;
    assert_eq!(seller, 450, "of 500, a tenth is the platform's");
}

/// Sells the dataset for 500 as the api does, to be given back for an hour: the purchase.
async fn sold(bench: &Bench, buyer: Client, dataset: &Sealed) -> PurchaseId {
    let terms = offer::Terms {
        kind: OfferKind::Buy,
        version: None,
        answer_seconds: None,
        refund_seconds: 3_600,
        period_seconds: None,
        minimum_seconds: 0,
        programs: None,
        output_bytes_max: None,
        is_released_by_seller: false,
    };
    let new = NewOffer {
        dataset: dataset.dataset,
        account: dataset.seller,
        asset_id: bench.asset,
        terms: &terms,
        price: base(500),
        platform_ppm: 100_000,
    };
    let since = now() - Duration::seconds(1);
    let mut tx = bench.owner.begin().await.unwrap();
    let offer = offers::create(&mut tx, &new, since).await.unwrap();
    let offer = offers::find(&mut tx, offer, since).await.unwrap();
    let new = NewPurchase {
        account: buyer.account,
        payer: Some(buyer.address),
        spender: None,
        offer: offer.unwrap().id,
        expected: base(500),
        seconds: None,
        cap: None,
        note: None,
    };
    let taken = purchases::take(&mut tx, &new, since).await.unwrap();
    tx.commit().await.unwrap();
    taken.id
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn what_is_given_back_in_the_moment_in_which_a_job_reads_it_is_not_read(db: PgPool) {
    let bench = Bench::new(db).await;
    let client = bench.client().await;
    let (dataset, _) = offered(&bench).await;
    close_offers(&bench).await;
    let purchase = bought(&bench, client.account.0, &dataset).await;
    let spec = reading(&dataset, inference());
    let data = QuotedData {
        version: dataset.version,
        price: None,
    };
    let job = bench.submit_on(client, &spec, Tier::None, data);
    let job = job.await.unwrap();
    let worker = bench.worker(1).await;
    let leased = lease(&worker).await;
    worker.open_dataset(held(&leased)).await.unwrap();
    // Its buyer was quicker, and is not done yet.
    let mut tx = bench.owner.begin().await.unwrap();
    for text in [
        "UPDATE purchases SET state = 'refunded', reason = 'test', ended_at = now() WHERE purchase_id = $1",
        "UPDATE entitlements SET ended_at = now() WHERE purchase_id = $1",
    ] {
        let done = sqlx::query(text).bind(purchase).execute(&mut *tx).await;
        assert_eq!(done.unwrap().rows_affected(), 1);
    }
    let read = worker.part(held(&leased), dataset.file, 0);
    let (read, ()) = futures::join!(read, async {
        wait_for_a_lock(&bench.owner).await;
        tx.commit().await.unwrap();
    });
    assert_eq!(code(read), "stale_lease");
    bench.assert_refunded(client, job, JobState::Failed).await;
    let served: i64 = sqlx::query_scalar("SELECT count(*) FROM purchase_servings")
        .fetch_one(&bench.owner)
        .await
        .unwrap();
    assert_eq!(served, 0);
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_job_uses_the_right_that_costs_no_window(db: PgPool) {
    let bench = Bench::new(db).await;
    let client = bench.client().await;
    let (dataset, _) = offered(&bench).await;
    close_offers(&bench).await;
    bought(&bench, client.account.0, &dataset).await;
    // What is paid already, as what was contributed is.
    sqlx::query(
        "INSERT INTO entitlements (entitlement_id, account_id, dataset_id, version_id, contribution_id, allows, starts_at, created_at)
         SELECT gen_random_uuid(), $1, v.dataset_id, version_id, contribution_id, 'download', now() - interval '1 s', now()
         FROM dataset_versions v JOIN contributions USING (version_id) WHERE version_id = $2",
    )
    .bind(client.account.0)
    .bind(contributed(&bench, &client, &dataset).await)
    .execute(&bench.owner)
    .await
    .unwrap();
    let spec = reading(&dataset, inference());
    let data = QuotedData {
        version: dataset.version,
        price: None,
    };
    bench
        .submit_on(client, &spec, Tier::None, data)
        .await
        .unwrap();
    let worker = bench.worker(1).await;
    let leased = lease(&worker).await;
    worker.open_dataset(held(&leased)).await.unwrap();
    worker.part(held(&leased), dataset.file, 0).await.unwrap();
    let served: i64 = sqlx::query_scalar("SELECT count(*) FROM purchase_servings")
        .fetch_one(&bench.owner)
        .await
        .unwrap();
    assert_eq!(served, 0, "the purchase can be given back still");
}

/// Gives the version to a dataset of the client's, as who contributes does: the version.
async fn contributed(bench: &Bench, client: &Client, dataset: &Sealed) -> Uuid {
    for text in [
        "INSERT INTO datasets (dataset_id, account_id, name, title, description, licence, provenance, tags, state, created_at, updated_at)
         SELECT gen_random_uuid(), $1, 'own', 'x', '', 'MIT', '', '{}', 'listed', now(), now() WHERE $2::uuid IS NOT NULL",
        "INSERT INTO contribution_terms (dataset_id, number, asset_id, reward_base, pool_ppm, rows_max, is_open, created_at)
         SELECT dataset_id, 1, (SELECT asset_id FROM assets), 0, 0, 10, true, now() FROM datasets WHERE account_id = $1 AND $2::uuid IS NOT NULL",
        "INSERT INTO contributions (contribution_id, dataset_id, owner_id, account_id, version_id, terms_number, files, rows, reward_base, asset_id,
             state, created_at, answer_due_at)
         SELECT gen_random_uuid(), d.dataset_id, $1, v.account_id, v.version_id, 1, 1, 1, 0, (SELECT asset_id FROM assets), 'pending', now(), now()
         FROM datasets d, dataset_versions v WHERE d.account_id = $1 AND v.version_id = $2",
    ] {
        let query = sqlx::query(text).bind(client.account.0).bind(dataset.version.0);
        let done = query.execute(&bench.owner).await.unwrap();
        assert_eq!(done.rows_affected(), 1, "{text}");
    }
    dataset.version.0
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_damaged_dataset_fails_the_job_for_the_operator_and_not_for_the_worker(db: PgPool) {
    let bench = Bench::new(db).await;
    let client = bench.client().await;
    let (dataset, data) = offered(&bench).await;
    let spec = reading(&dataset, training());
    let job = bench.submit_on(client, &spec, Tier::None, data);
    let job = job.await.unwrap();
    let worker = bench.worker(1).await;
    let leased = lease(&worker).await;
    let mine = held(&leased);
    worker.open_dataset(mine).await.unwrap();
    worker.part(mine, dataset.file, 0).await.unwrap();
    let folder = bench
        .objects()
        .join("datasets")
        .join(dataset.version.0.to_string());
    let folder = folder.join(dataset.file.0.to_string());
    for object in std::fs::read_dir(folder).unwrap() {
        let object = object.unwrap().path();
        let mut bytes = std::fs::read(&object).unwrap();
        bytes[100] ^= 1;
        std::fs::write(object, bytes).unwrap();
    }
    let part = worker.part(mine, dataset.file, 1).await;
    assert_eq!(code(part), "stale_lease");
    bench.assert_refunded(client, job, JobState::Failed).await;
    let failure = bench.job(client, job).await.failure.unwrap();
    assert_eq!(
        (failure.cause, failure.code.as_str()),
        (Cause::Operator, "data_damaged")
    );
    assert_eq!(bench.attempt(leased.attempt_id).await.0, "cancelled");
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn results_with_more_bytes_than_the_offer_allows_fail_the_job(db: PgPool) {
    let bench = Bench::new(db).await;
    let client = bench.client().await;
    let terms = Terms {
        output_bytes_max: 8,
        ..OPEN
    };
    let (dataset, data) = offered_on(&bench, terms).await;
    let spec = reading(&dataset, inference());
    let job = bench.submit_on(client, &spec, Tier::None, data);
    let job = job.await.unwrap();
    let worker = bench.worker(1).await;
    compute(&[(&worker, &[1.0, 2.0])]).await;
    assert_eq!(bench.rule().await, 1);
    bench.assert_refunded(client, job, JobState::Failed).await;
    let failure = bench.job(client, job).await.failure.unwrap();
    assert_eq!(
        (failure.cause, failure.code.as_str()),
        (Cause::Client, "output_above_terms")
    );
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn results_are_charged_and_wait_for_the_seller_where_the_offer_says_so(db: PgPool) {
    let bench = Bench::new(db).await;
    let client = bench.client().await;
    let terms = Terms {
        is_released_by_seller: true,
        ..OPEN
    };
    let (dataset, data) = offered_on(&bench, terms).await;
    let spec = reading(&dataset, inference());
    let job = bench.submit_on(client, &spec, Tier::None, data);
    let job = job.await.unwrap();
    let worker = bench.worker(1).await;
    compute(&[(&worker, &[1.0])]).await;
    assert_eq!(bench.rule().await, 1);
    let waiting = bench.job(client, job).await;
    assert_eq!(waiting.state, JobState::Completed);
    assert!(waiting.charge.is_some_and(|it| it.amount > Amount::ZERO));
    assert!(waiting.awaits_release && waiting.outputs.is_empty());
    let of = (dataset.seller, dataset.dataset);
    let mut tx = bench.api.begin().await.unwrap();
    let listed = withheld_results::list(&mut tx, of, None, 10).await.unwrap();
    let [shown] = listed.as_slice() else {
        panic!("{listed:?}")
    };
    assert_eq!((shown.job, shown.program), (job, spec.program()));
    let others = (client.account, dataset.dataset);
    let refused = withheld_results::release(&mut tx, others, job, now());
    assert_eq!(refused.await.unwrap(), Released::Unknown);
    let released = withheld_results::release(&mut tx, of, job, now());
    assert_eq!(released.await.unwrap(), Released::Now);
    let again = withheld_results::release(&mut tx, of, job, now());
    assert_eq!(again.await.unwrap(), Released::Before);
    tx.commit().await.unwrap();
    let released = bench.job(client, job).await;
    assert!(!released.awaits_release);
    let output = released.outputs[0].sha256;
    let mut conn = bench.api.acquire().await.unwrap();
    let blob = blobs::find(&mut conn, client.account, output).await;
    assert!(blob.unwrap().is_some());
}

async fn close_offers(bench: &Bench) {
    let closed = sqlx::query("UPDATE offers SET closed_at = now()").execute(&bench.owner);
    assert_eq!(closed.await.unwrap().rows_affected(), 1);
}

/// Somebody who bought the dataset, as the service that sells leaves it: the purchase.
async fn bought(bench: &Bench, buyer: Uuid, dataset: &Sealed) -> Uuid {
    let (offer, purchase) = (Uuid::now_v7(), Uuid::now_v7());
    for text in [
        "INSERT INTO offers (offer_id, dataset_id, account_id, asset_id, kind, is_gated, refund_seconds, created_at)
         SELECT $1, dataset_id, account_id, asset_id, 'free', false, 0, created_at FROM offers WHERE $2::uuid IS NOT NULL AND $3::uuid IS NOT NULL",
        "INSERT INTO offer_prices (offer_id, number, price_base, platform_ppm, effective_at, created_at)
         SELECT $1, 1, 0, 0, now(), now() WHERE $2::uuid IS NOT NULL AND $3::uuid IS NOT NULL",
        "INSERT INTO purchases (purchase_id, account_id, asset_id, seller_id, dataset_id, offer_id, price_number, kind, state, amount_base,
             created_at, starts_at, final_at)
         SELECT $2, $3, asset_id, account_id, dataset_id, offer_id, 1, 'free', 'granted', 0, now(), now(), now() FROM offers WHERE offer_id = $1",
        "INSERT INTO entitlements (entitlement_id, account_id, dataset_id, purchase_id, allows, starts_at, created_at)
         SELECT gen_random_uuid(), $3, dataset_id, $2, 'download', now() - interval '1 s', now() FROM offers WHERE offer_id = $1",
    ] {
        let query = sqlx::query(text).bind(offer).bind(purchase).bind(buyer);
        let done = query.execute(&bench.owner).await.unwrap();
        assert_eq!(done.rows_affected(), 1, "{} {text}", dataset.dataset);
    }
    purchase
}
