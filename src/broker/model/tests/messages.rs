use super::fixture::*;
use crate::{broker::model::*, protocol::value::FieldTable};

#[test]
fn consumers_take_turns() {
    let mut client = client();
    let channel = client.channel;
    client.queue("q", FieldTable::new());
    client.consume(channel, "q", "one");
    client.consume(channel, "q", "two");
    for body in ["a", "b", "c"] {
        client.send("q", body);
    }
    assert_eq!(client.handed_out(), ["one:a", "two:b", "one:c"]);
}

#[test]
fn higher_priorities_go_first_until_they_are_full() {
    let mut client = client();
    let channel = client.channel;
    client.queue("q", FieldTable::new());
    client.consume(channel, "q", "low");
    client.vhost.qos(channel, 0, 1, false).unwrap();
    client.consume_with(channel, "q", "high", table([("x-priority", 5.into())]));
    for body in ["a", "b", "c"] {
        client.send("q", body);
    }
    assert_eq!(client.handed_out(), ["high:a", "low:b", "low:c"]);
    client.vhost.ack(channel, 1, false).unwrap();
    client.send("q", "d");
    assert_eq!(client.handed_out(), ["high:d"]);
}

#[test]
fn prefetch_limits_each_consumer_and_the_channel() {
    let mut client = client();
    let channel = client.channel;
    client.queue("q", FieldTable::new());
    for body in ["a", "b", "c", "d", "e", "f"] {
        client.send("q", body);
    }
    client.vhost.qos(channel, 0, 2, false).unwrap();
    client.consume(channel, "q", "one");
    assert_eq!(client.handed_out(), ["one:a", "one:b"]);
    client.vhost.ack(channel, 1, false).unwrap();
    assert_eq!(client.handed_out(), ["one:c"]);
    let other = client.open(1, 2);
    client.vhost.qos(other, 0, 1, true).unwrap();
    client.consume(other, "q", "two");
    client.consume(other, "q", "three");
    assert_eq!(client.handed_out(), ["two:d"]);
    client.vhost.ack(other, 1, false).unwrap();
    assert_eq!(client.deliveries().len(), 1);
    client.vhost.qos(other, 0, 0, true).unwrap();
    assert_eq!(client.deliveries().len(), 1, "the limit is gone");
}

/// A queue that found no room in a channel asks none of its consumers until it is told of room, which is after what made
/// that room.
#[test]
fn a_channel_without_room_is_not_asked_again() {
    let mut client = client();
    let (channel, other) = (client.channel, client.open(2, 1));
    client.queue("q", FieldTable::new());
    client.consume(channel, "q", "one");
    client.consume(other, "q", "other");
    client.consume(channel, "q", "two");
    client.vhost.qos(channel, 0, 2, true).unwrap();
    ["a", "b", "c", "d"].into_iter().for_each(|body| client.send("q", body));
    assert_eq!(client.handed_out(), ["one:a", "other:b", "two:c", "other:d"]);
    client.vhost.nack(channel, 1, false, true).unwrap();
    assert_eq!(client.handed_out(), ["other:a"], "not to the second one, who is next");
    ["e", "f"].into_iter().for_each(|body| client.send("q", body));
    assert_eq!(client.handed_out(), ["other:e", "one:f"]);
}

/// What a stream of 3.x refuses to take back is still the channel's, with all that was to be settled together with it.
#[test]
fn what_could_not_be_settled_goes_back_with_its_channel() {
    for in_transaction in [false, true] {
        let mut client = client_of(Emulate::RabbitMq3);
        let channel = client.channel;
        client.queue("t", FieldTable::new());
        client.queue("s", table([("x-queue-type", "stream".into())]));
        client.vhost.qos(channel, 0, 5, false).unwrap();
        client.consume(channel, "t", "one");
        client.consume(channel, "s", "two");
        ["t", "s", "t"].into_iter().for_each(|queue| client.send(queue, "a"));
        assert_eq!(client.deliveries().len(), 3);
        if in_transaction {
            client.vhost.select_transactions(channel).unwrap();
        }
        let refused = client.vhost.nack(channel, 0, true, false).and_then(|()| client.vhost.commit(channel));
        assert!(text(refused).contains("not supported by stream queues"));
        client.vhost.close_session(SessionId(1));
        assert_eq!(client.bodies("t"), ["a", "a"], "in a transaction: {in_transaction}");
    }
}

/// A limit that several queues share is for all of them, and so is a connection that takes little at a time.
#[test]
fn who_shares_a_limit_is_not_left_out() {
    for shares_a_channel in [true, false] {
        let mut client = client();
        let channels =
            [1, 2, 3].map(|number| if number == 1 { client.channel } else { client.open(1, number) });
        for (queue, own) in ["x", "y", "z"].into_iter().zip(channels) {
            client.queue(queue, FieldTable::new());
            let channel = if shares_a_channel { client.channel } else { own };
            client.vhost.qos(channel, 0, if shares_a_channel { 1 } else { 0 }, true).unwrap();
            client.consume(channel, queue, queue);
            // Each takes a whole turn of the connection.
            let body = if shares_a_channel { String::new() } else { "b".repeat(300_000) };
            client.vhost.set_writable(SessionId(1), false);
            (0..50).for_each(|_| client.send(queue, &body));
        }
        let mut served = Vec::new();
        for _ in 0..50 {
            client.vhost.set_writable(SessionId(1), false);
            client.vhost.set_writable(SessionId(1), true);
            for (tag, number, ..) in client.deliveries() {
                served.push(tag);
                if shares_a_channel {
                    client.vhost.ack(client.channel, number, false).unwrap();
                }
            }
        }
        for queue in ["x", "y", "z"] {
            let share = served.iter().filter(|tag| *tag == queue).count();
            assert!(share > 5, "{queue}: {served:?}");
        }
    }
}

#[test]
fn what_comes_back_takes_its_old_place() {
    let mut client = client();
    let channel = client.channel;
    client.queue("q", FieldTable::new());
    for body in ["a", "b", "c", "d"] {
        client.send("q", body);
    }
    client.vhost.qos(channel, 0, 3, false).unwrap();
    client.consume(channel, "q", "one");
    client.vhost.cancel(channel, b"one").unwrap();
    client.vhost.take_effects();
    client.vhost.nack(channel, 3, false, true).unwrap();
    client.vhost.nack(channel, 1, false, true).unwrap();
    assert_eq!(client.bodies("q"), ["a", "c", "d"]);
    client.vhost.close_channel(channel);
    assert_eq!(client.bodies("q"), ["a", "b", "c", "d"]);
    let flags: Vec<_> = client.vhost.peek(b"q", 9).into_iter().map(|(redelivered, _)| redelivered).collect();
    assert_eq!(flags, [true, true, true, false]);
}

#[test]
fn recover_delivers_again() {
    let mut client = client();
    let channel = client.channel;
    client.queue("q", FieldTable::new());
    client.consume(channel, "q", "c");
    client.send("q", "a");
    client.send("q", "b");
    client.vhost.take_effects();
    client.vhost.recover(channel, true).unwrap();
    let again = [("c".into(), 3, true, "a".into()), ("c".into(), 4, true, "b".into())];
    assert_eq!(client.deliveries(), again);
    assert_eq!(text(client.vhost.recover(channel, false)), "NOT_IMPLEMENTED - requeue=false");
}

#[test]
fn tags_are_settled_once_and_multiple_means_up_to() {
    let mut client = client();
    let channel = client.channel;
    client.queue("q", FieldTable::new());
    client.consume(channel, "q", "c");
    for body in ["a", "b", "c", "d"] {
        client.send("q", body);
    }
    let unacked = |client: &Client| client.vhost.list_queues().first().map(|queue| queue.unacked);
    client.vhost.ack(channel, 2, true).unwrap();
    assert_eq!(unacked(&client), Some(2));
    let unknown = |tag| format!("PRECONDITION_FAILED - unknown delivery tag {tag}");
    assert_eq!(text(client.vhost.ack(channel, 2, true)), unknown(2));
    assert_eq!(text(client.vhost.nack(channel, 9, false, true)), unknown(9));
    assert_eq!(text(client.vhost.ack(channel, 0, false)), unknown(0));
    client.vhost.ack(channel, 0, true).unwrap();
    assert_eq!(unacked(&client), Some(0));
}

#[test]
fn an_exclusive_consumer_is_alone() {
    let mut client = client();
    let channel = client.channel;
    client.queue("q", FieldTable::new());
    let exclusive = || ConsumeOptions { queue: b"q", tag: b"x", exclusive: true, ..Default::default() };
    client.consume(channel, "q", "first");
    let in_use = "ACCESS_REFUSED - queue 'q' in vhost '/' in exclusive use";
    assert_eq!(text(client.vhost.consume(channel, exclusive())), in_use);
    client.vhost.cancel(channel, b"first").unwrap();
    client.vhost.consume(channel, exclusive()).unwrap();
    let other = ConsumeOptions { queue: b"q", tag: b"y", ..Default::default() };
    assert_eq!(text(client.vhost.consume(channel, other.clone())), in_use);
    assert_eq!(
        text(client.vhost.consume(channel, ConsumeOptions { tag: b"x", ..other })),
        "NOT_ALLOWED - attempt to reuse consumer tag 'x'"
    );
}

#[test]
fn a_single_active_consumer_has_a_successor() {
    let mut client = client();
    let channel = client.channel;
    client.queue("q", table([("x-single-active-consumer", true.into())]));
    client.consume(channel, "q", "one");
    client.consume(channel, "q", "two");
    client.send("q", "a");
    client.send("q", "b");
    assert_eq!(client.handed_out(), ["one:a", "one:b"]);
    client.vhost.cancel(channel, b"one").unwrap();
    client.send("q", "c");
    assert_eq!(client.handed_out(), ["two:c"]);
    let active: Vec<_> = client.vhost.list_consumers().into_iter().map(|consumer| consumer.active).collect();
    assert_eq!(active, [true]);
}

#[test]
fn a_session_that_cannot_be_written_to_gets_nothing_until_it_can() {
    let mut client = client();
    let channel = client.channel;
    client.queue("q", FieldTable::new());
    client.consume(channel, "q", "c");
    client.vhost.set_writable(SessionId(1), false);
    client.send("q", "a");
    assert!(client.deliveries().is_empty());
    client.vhost.set_writable(SessionId(1), true);
    assert_eq!(client.handed_out(), ["c:a"]);
}

#[test]
fn get_counts_what_is_left() {
    let mut client = client();
    client.queue("q", FieldTable::new());
    client.send("q", "a");
    client.send("q", "b");
    let got = client.vhost.get(client.channel, b"q", false).unwrap().unwrap();
    assert_eq!((got.delivery_tag, got.redelivered, got.messages), (1, false, 1));
    client.vhost.nack(client.channel, 1, false, true).unwrap();
    let again = client.get("q").unwrap();
    assert_eq!((again.delivery_tag, again.redelivered, again.messages), (2, true, 1));
    assert!(client.get("q").is_some() && client.get("q").is_none());
}
