use super::*;
use crate::redis_server::Server;

const SOON: Duration = Duration::from_secs(10);

fn frames(texts: &[&str]) -> Vec<Bytes> {
    texts
        .iter()
        .map(|it| Bytes::copy_from_slice(it.as_bytes()))
        .collect()
}

#[test]
fn frames_that_travel_together_come_apart_again_and_a_cut_message_is_none() {
    let sent = frames(&["one", "", "three"]);
    let message = join(&sent);
    assert_eq!(split(message.clone()).unwrap(), sent);
    assert_eq!(split(Bytes::new()).unwrap(), Vec::<Bytes>::new());
    for cut in 1..message.len() {
        let whole = split(message.slice(..cut));
        assert!(
            whole.is_none() || whole.unwrap().len() < 3,
            "{cut} bytes are no whole message"
        );
    }
}

#[tokio::test]
async fn within_one_process_frames_reach_who_listens_and_nobody_else() {
    let relay = Relay::local();
    let (one, two) = (Arc::from("one"), Arc::from("two"));
    let mut inbox = relay.listen(&["one"]);
    relay.send(&two, Bytes::from_static(b"lost")).unwrap();
    relay.send(&one, Bytes::from_static(b"heard")).unwrap();
    let message = inbox.next().await.unwrap();
    assert_eq!(
        (message.mailbox.as_str(), message.frames),
        ("one", frames(&["heard"]))
    );
    assert!(relay.is_connected());
}

async fn until(mut is_so: impl FnMut() -> bool) {
    let looking = async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(SOON, looking).await.expect("it comes to be so");
}

/// Sends until it is heard: a subscription may come up after the publisher.
async fn heard(relay: &Relay, mailbox: &Arc<str>, inbox: &mut Inbox, frame: &'static [u8]) {
    let trying = async {
        loop {
            relay.send(mailbox, Bytes::from_static(frame)).ok();
            if let Ok(Some(message)) = timeout(Duration::from_millis(50), inbox.next()).await {
                return message;
            }
        }
    };
    let message = timeout(SOON, trying).await.expect("it is heard");
    assert_eq!(message.frames[0], frame);
}

#[tokio::test]
async fn frames_reach_other_processes_in_order_and_one_message_carries_many() {
    let server = Server::start();
    let here = Relay::start(&server.url(), "test").unwrap();
    let there = Relay::start(&server.url(), "test").unwrap();
    let mailbox: Arc<str> = Arc::from("there");
    let mut inbox = there.listen(&[&mailbox]);
    heard(&here, &mailbox, &mut inbox, b"first").await;
    while timeout(Duration::from_millis(100), inbox.next())
        .await
        .is_ok()
    {}
    for number in 0..500_u32 {
        here.send(&mailbox, Bytes::copy_from_slice(&number.to_le_bytes()))
            .unwrap();
    }
    let (mut came, mut messages) = (Vec::new(), 0);
    while came.len() < 500 {
        let message = timeout(SOON, inbox.next()).await.unwrap().unwrap();
        messages += 1;
        came.extend(message.frames);
    }
    let expected: Vec<_> = (0..500_u32)
        .map(|it| Bytes::copy_from_slice(&it.to_le_bytes()))
        .collect();
    assert_eq!(came, expected);
    assert!(messages < 250, "{messages} messages for 500 frames");
}

#[tokio::test]
async fn whoever_waits_hears_that_nobody_listens_and_that_redis_is_away_and_goes_on_when_it_is_back()
 {
    let mut server = Server::start();
    let relay = Relay::start(&server.url(), "test").unwrap();
    let mut losses = relay.losses();
    until(|| relay.is_connected()).await;
    let nobody: Arc<str> = Arc::from("nobody");
    relay.send(&nobody, Bytes::from_static(b"x")).unwrap();
    let loss = timeout(SOON, losses.next()).await.unwrap();
    assert_eq!(loss, Loss::Unheard(Arc::clone(&nobody)));
    server.stop();
    relay.send(&nobody, Bytes::from_static(b"x")).ok();
    assert_eq!(timeout(SOON, losses.next()).await.unwrap(), Loss::All);
    until(|| !relay.is_connected()).await;
    let refused = relay.send(&nobody, Bytes::from_static(b"x"));
    assert_eq!(refused, Err(NotSent::Away));
    let mut inbox = relay.listen(&["somebody"]);
    server.restart();
    until(|| relay.is_connected()).await;
    heard(&relay, &Arc::from("somebody"), &mut inbox, b"back").await;
}

#[tokio::test]
async fn what_waits_is_bounded_in_bytes() {
    let server = Server::start();
    let relay = Relay::start(&server.url(), "test").unwrap();
    until(|| relay.is_connected()).await;
    let large = Bytes::from(vec![0; usize::try_from(QUEUE_BYTES_MAX).unwrap() / 2 + 1]);
    let nobody: Arc<str> = Arc::from("nobody");
    relay.send(&nobody, large.clone()).unwrap();
    assert_eq!(relay.send(&nobody, large), Err(NotSent::Full));
}
