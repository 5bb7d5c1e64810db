//! Handlers in coroutines.

use std::sync::{
    Arc, Mutex, OnceLock,
    atomic::{AtomicUsize, Ordering},
};

use leveret::{Connection, Delivery, Error, FailurePolicy, HandlerError, Listen, Listener};

use crate::common::peer::*;

const HANDLERS: usize = 100;

/// Row 76: a hundred handlers wait in a call at the same time, all on one thread.
#[test]
fn handlers_in_coroutines_wait_side_by_side() {
    let peer = Peer::run(|peer| {
        peer.handshake();
        peer.open_channel(1);
        let tag = peer.start_consumer(1);
        for number in 1..=HANDLERS as u64 {
            peer.deliver(1, &tag, number, number.to_string().as_bytes());
        }
        let mut names: Vec<_> =
            (0..HANDLERS).map(|_| peer.expect(1, QUEUE_DECLARE).text(1).to_owned()).collect();
        // Nobody is answered before all of them have asked.
        for name in &names {
            peer.send(1, QUEUE_DECLARE_OK, args![name, 0, 0]);
        }
        let mut acked: Vec<_> = (0..HANDLERS).map(|_| peer.expect(1, ACK).number(0)).collect();
        acked.sort_unstable();
        assert!(acked.into_iter().eq(1..=HANDLERS as u64));
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), HANDLERS);
        peer.expect(1, CANCEL);
        peer.send(1, CANCEL_OK, args![&tag]);
        peer.close_channel(1);
        peer.close();
    });
    crate::set_up();
    let connection = Connection::open(peer.config()).unwrap();
    let channel = connection.channel().unwrap();
    let consumer = channel.basic_consume("q").unwrap();
    let (handled, asking) = (Arc::new(AtomicUsize::new(0)), channel.clone());
    let count = handled.clone();
    let handler = move |delivery: &Delivery| {
        let ok = asking.queue_declare(delivery.text()?)?;
        assert_eq!(ok.queue, delivery.text()?);
        count.fetch_add(1, Ordering::SeqCst);
        Ok(())
    };
    let listener = consumer.listen(Listen::new(handler).coroutines(HANDLERS)).unwrap();
    eventually("not all were handled", || handled.load(Ordering::SeqCst) == HANDLERS);
    listener.stop();
    listener.wait().unwrap();
    drop(listener);
    channel.close().unwrap();
    connection.close().unwrap();
    peer.finish();
}

/// Row 77: handlers that panic, that fail, and that wait for themselves, in coroutines; each message is settled once,
/// as it should be, and the worker lives on.
#[test]
fn handlers_in_coroutines_may_panic() {
    const MESSAGES: u64 = 300;
    let peer = Peer::run(|peer| {
        peer.handshake();
        peer.open_channel(1);
        let tag = peer.start_consumer(1);
        for number in 1..=MESSAGES {
            peer.deliver(1, &tag, number, b"x");
        }
        let (mut acked, mut rejected) = (Vec::new(), Vec::new());
        while acked.len() + rejected.len() < MESSAGES as usize {
            let frame = peer.next_frame();
            match frame.method() {
                Some(ACK) => acked.push(frame.arguments().number(0)),
                Some(REJECT) => rejected.push(frame.arguments().number(0)),
                other => panic!("{other:?}"),
            }
        }
        rejected.sort_unstable();
        assert!(rejected.into_iter().eq((1..=MESSAGES).filter(|number| number % 10 < 2)));
        peer.expect(1, CANCEL);
        peer.send(1, CANCEL_OK, args![&tag]);
        peer.close_channel(1);
        peer.close();
        acked.len()
    });
    crate::set_up();
    let connection = Connection::open(peer.config()).unwrap();
    let channel = connection.channel().unwrap();
    let consumer = channel.basic_consume("q").unwrap();
    let itself: Arc<OnceLock<Listener>> = Arc::default();
    let waited = Arc::new(Mutex::new(None));
    let (own, told, handled) = (itself.clone(), waited.clone(), Arc::new(AtomicUsize::new(0)));
    let count = handled.clone();
    let handler = move |delivery: &Delivery| -> Result<(), HandlerError> {
        count.fetch_add(1, Ordering::SeqCst);
        match delivery.delivery_tag() {
            number if number % 10 == 0 => panic!("on purpose"),
            number if number % 10 == 1 => Err("refused".into()),
            _ => {
                while own.get().is_none() {
                    may::coroutine::yield_now();
                }
                *told.lock().unwrap() = Some(own.get().unwrap().wait());
                Ok(())
            }
        }
    };
    let listen = Listen::new(handler).on_failure(FailurePolicy::Reject).coroutines(7);
    let listener = consumer.listen(listen).unwrap();
    assert!(itself.set(listener).is_ok());
    eventually("not all were handled", || handled.load(Ordering::SeqCst) == MESSAGES as usize);
    let listener = itself.get().unwrap();
    listener.stop();
    listener.wait().unwrap();
    let waited = waited.lock().unwrap().take();
    assert!(matches!(waited, Some(Err(Error::WouldDeadlock))), "{waited:?}");
    channel.close().unwrap();
    connection.close().unwrap();
    assert_eq!(peer.finish(), 240);
}
