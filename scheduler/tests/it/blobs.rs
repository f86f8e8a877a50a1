//! What an attempt may read and write.

use bytes::Bytes;
use comptoir_domain::{digest::Sha256, job::Tier};
use comptoir_scheduler::stub::tensor_file;
use comptoir_wire::LEASE_TOKEN_HEADER;
use reqwest::{Method, StatusCode, header};
use sqlx::PgPool;

use crate::harness::{Bench, held, inference, lease, rows};

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn an_attempt_reads_its_job_s_inputs_and_its_own_blobs_and_nothing_else(db: PgPool) {
    let bench = Bench::new(db).await;
    let (client, one, two) = (
        bench.client().await,
        bench.worker(0xa1).await,
        bench.worker(0xb0).await,
    );
    bench.submit(client, &inference(), Tier::Replicated).await;
    let (of_one, of_two) = (lease(&one).await, lease(&two).await);
    let output = one
        .upload(held(&of_one), tensor_file(&[1.0]))
        .await
        .unwrap();
    assert_eq!(
        one.download(held(&of_one), output).await.unwrap(),
        tensor_file(&[1.0])
    );
    assert_eq!(
        one.download(held(&of_one), Sha256::of(&rows()))
            .await
            .unwrap(),
        rows()
    );
    // The peer's result is not shown, neither to the peer nor under the peer's lease.
    assert_eq!(
        two.download(held(&of_two), output)
            .await
            .unwrap_err()
            .code(),
        "not_found"
    );
    assert_eq!(
        two.download(held(&of_one), output)
            .await
            .unwrap_err()
            .code(),
        "not_found"
    );
    let stored = bench
        .state
        .objects
        .put(Bytes::from_static(b"another tenant's"))
        .await
        .unwrap();
    let mut conn = bench.owner.acquire().await.unwrap();
    comptoir_store::blobs::register(&mut conn, stored, crate::harness::now())
        .await
        .unwrap();
    assert_eq!(
        one.download(held(&of_one), stored.sha256)
            .await
            .unwrap_err()
            .code(),
        "not_found"
    );
    let mixed = comptoir_wire::heartbeat::Held {
        attempt_id: of_one.attempt_id,
        lease_token: of_two.lease_token,
    };
    assert_eq!(
        one.download(mixed, output).await.unwrap_err().code(),
        "stale_lease"
    );
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn bytes_that_do_not_have_their_name_are_not_kept(db: PgPool) {
    let bench = Bench::new(db).await;
    let (client, worker) = (bench.client().await, bench.worker(0xa1).await);
    bench.submit(client, &inference(), Tier::None).await;
    let leased = lease(&worker).await;
    let name = Sha256::of(b"what was promised");
    let refused = worker
        .upload_as(held(&leased), name, Bytes::from_static(b"something else"))
        .await;
    assert_eq!(refused.unwrap_err().code(), "digest_mismatch");
    // Nor is a name taken that the store knows, without the bytes.
    let refused = worker
        .upload_as(held(&leased), Sha256::of(&rows()), Bytes::from_static(b"x"))
        .await;
    assert_eq!(refused.unwrap_err().code(), "digest_mismatch");
    assert_eq!(
        worker
            .download(held(&leased), name)
            .await
            .unwrap_err()
            .code(),
        "not_found"
    );
    let uploads: i64 = sqlx::query_scalar("SELECT count(*) FROM attempt_blobs")
        .fetch_one(&bench.owner)
        .await
        .unwrap();
    assert_eq!(uploads, 0);
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn an_attempt_uploads_no_more_blobs_than_it_can_need(db: PgPool) {
    let bench = Bench::new(db).await;
    let (client, worker) = (bench.client().await, bench.worker(0xa1).await);
    bench.submit(client, &inference(), Tier::None).await;
    let leased = lease(&worker).await;
    for number in 0..17_u8 {
        worker
            .upload(held(&leased), Bytes::copy_from_slice(&[number]))
            .await
            .unwrap();
    }
    worker
        .upload(held(&leased), Bytes::copy_from_slice(&[0]))
        .await
        .unwrap();
    let refused = worker
        .upload(held(&leased), Bytes::copy_from_slice(&[17]))
        .await;
    assert_eq!(refused.unwrap_err().code(), "too_many_blobs");
}

#[sqlx::test(migrator = "comptoir_store::MIGRATOR")]
async fn a_broken_download_goes_on_where_it_stopped(db: PgPool) {
    let bench = Bench::new(db).await;
    let (client, worker) = (bench.client().await, bench.worker(0xa1).await);
    bench.submit(client, &inference(), Tier::None).await;
    let leased = lease(&worker).await;
    let path = format!(
        "/v1/attempts/{}/blobs/{}",
        leased.attempt_id,
        Sha256::of(&rows())
    );
    let reply = worker
        .request(Method::GET, &path)
        .header(LEASE_TOKEN_HEADER, leased.lease_token.to_string())
        .header(header::RANGE, "bytes=5-")
        .send()
        .await
        .unwrap();
    assert_eq!(reply.status(), StatusCode::PARTIAL_CONTENT);
    assert_eq!(reply.headers()[header::CONTENT_RANGE], "bytes 5-8/9");
    assert_eq!(reply.bytes().await.unwrap(), rows().slice(5..));
}
