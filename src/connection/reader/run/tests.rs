//! What is gathered for whom, and the order in which it is handed over.

use super::*;
use crate::{
    connection::{batch::Batch, shutdown::Step, state::Recipient},
    error::Error,
    protocol::{content::Parts, spec::Method},
};
use std::{collections::BTreeMap, sync::Mutex, time::Duration};

/// Writes down what it gets. Consumers whose tag begins with `!` are immediate, one named `gone` is not there.
#[derive(Default)]
struct Log(Arc<Mutex<Vec<String>>>);

impl Log {
    fn write(&self, line: String) {
        self.0.lock().unwrap().push(line);
    }
}

struct Writing(Arc<Log>, String, Mutex<Vec<Arc<Batch>>>);

impl Inbox for Log {
    fn method(&self, _: Method<'_>, _: &[u8]) -> Result<()> {
        Ok(())
    }
    fn content(self: Arc<Self>, _: Content) -> Result<()> {
        Ok(())
    }
    fn accept(&self, tag: &[u8], arrived: &[Arrived]) -> Option<Accepted> {
        let tag = String::from_utf8_lossy(tag).into_owned();
        let numbers: Vec<u64> = arrived.iter().map(|arrived| arrived.delivery_tag).collect();
        self.write(format!("accept {tag} {numbers:?}"));
        let recipient = Arc::new(Writing(Arc::new(Log(self.0.clone())), tag.clone(), Mutex::default()));
        (tag != "gone").then_some(Accepted { recipient, epoch: 0 })
    }
    fn is_immediate(&self, tag: &[u8]) -> bool {
        tag.starts_with(b"!")
    }
    fn confirmations(&self, confirmations: &[Confirmation], _: &mut Vec<Waiter>) {
        let numbers: Vec<_> = confirmations.iter().map(|row| (row.first, row.last)).collect();
        self.write(format!("confirm {numbers:?}"));
    }
    fn fail(&self, _: &Error) {}
    fn wind_down(self: Arc<Self>, _: Step, _: Duration) -> Result<()> {
        Ok(())
    }
}

impl Recipient for Writing {
    fn deliver(&self, _: u32, gathered: &mut Gathered, packs: &mut Packs, _: &mut Vec<Waiter>) {
        let batch = gathered.keep(packs);
        for arrived in &batch.deliveries {
            let body = arrived.parts.body(batch.bytes());
            let expected = body_of(arrived.delivery_tag, body.len());
            assert!(body == expected, "the body of {} is another", arrived.delivery_tag);
            self.0.write(format!("{} {}", self.1, arrived.delivery_tag));
        }
        // What is for others, and small, is not kept with it.
        let own: usize = batch.deliveries.iter().map(|arrived| arrived.parts.body(batch.bytes()).len()).sum();
        assert!(own > 64 * 1024 || batch.bytes().len() <= own + GAP.len() * batch.deliveries.len());
        // Kept for a while, so that memory is used again, and sometimes not.
        let mut kept = self.2.lock().unwrap();
        kept.push(batch);
        if kept.len() > 10 {
            kept.clear();
        }
    }
}

/// Lies before each message.
const GAP: &[u8] = b"gap";

fn body_of(number: u64, size: usize) -> Vec<u8> {
    number.to_be_bytes().repeat(size / 8 + 1)[..size].to_vec()
}

struct Feeding {
    run: Run,
    log: Arc<Log>,
    number: u64,
}

impl Feeding {
    fn new() -> Feeding {
        Feeding { run: Run::default(), log: Arc::default(), number: 0 }
    }

    fn turn_to(&mut self, channel: u16, tag: &str) {
        let inbox: Arc<dyn Inbox> = self.log.clone();
        assert!(self.run.turn_to(channel, tag.as_bytes(), || Ok(Some(inbox))).unwrap());
    }

    /// The next message, as it would lie in `buffer`.
    fn deliver(&mut self, channel: u16, tag: &str, buffer: &Arc<Vec<u8>>, message: Range<usize>) {
        self.number += 1;
        let delivery_tag = self.number;
        self.turn_to(channel, tag);
        self.run.whole(buffer, &message, |first| {
            let body = message.start - first..message.end - first;
            let parts = Parts::apart(body.start..body.start, body.start..body.start, body);
            Arrived { parts, delivery_tag, redelivered: false }
        });
    }

    /// One message of each of these sizes for each of these consumers, out of one buffer, with a gap before each.
    fn deliver_all(&mut self, messages: &[(u16, &str, usize)]) {
        let (mut bytes, mut places) = (Vec::new(), Vec::new());
        for (number, (_, _, size)) in (self.number + 1..).zip(messages) {
            bytes.extend_from_slice(GAP);
            places.push(bytes.len()..bytes.len() + size);
            bytes.extend_from_slice(&body_of(number, *size));
        }
        let buffer = Arc::new(bytes);
        for ((channel, tag, _), place) in messages.iter().zip(places) {
            self.deliver(*channel, tag, &buffer, place);
        }
    }

    fn confirm(&mut self, channel: u16, number: u64) {
        self.turn_to(channel, "");
        self.run.confirmed(Confirmation { first: number, last: number, multiple: false, acked: true });
    }

    fn logged(&mut self) -> Vec<String> {
        self.run.end();
        mem::take(&mut self.log.0.lock().unwrap())
    }
}

#[test]
fn all_are_accepted_before_any_is_handed_over_and_confirms_come_last() {
    let mut feeding = Feeding::new();
    feeding.confirm(1, 7);
    feeding.deliver_all(&[(1, "a", 10), (1, "b", 10), (1, "a", 10)]);
    feeding.confirm(1, 8);
    feeding.deliver_all(&[(1, "gone", 10), (1, "b", 10), (1, "a", 10)]);
    feeding.confirm(1, 10);
    let expected = [
        "accept a [1, 3, 6]",
        "accept b [2, 5]",
        "accept gone [4]",
        "a 1",
        "a 3",
        "a 6",
        "b 2",
        "b 5",
        "confirm [(7, 8), (10, 10)]",
    ];
    assert_eq!(feeding.logged(), expected);
    assert!(feeding.logged().is_empty());
}

#[test]
fn immediate_consumers_get_theirs_in_the_order_of_all() {
    let mut feeding = Feeding::new();
    feeding.confirm(1, 1);
    let some = [
        (1, "!a", 10),
        (1, "!a", 10),
        (1, "!b", 10),
        (1, "!a", 10),
        (1, "c", 10),
        (1, "d", 10),
        (1, "c", 10),
    ];
    feeding.deliver_all(&some);
    feeding.deliver_all(&[(1, "!b", 10), (1, "c", 10)]);
    let mut logged = feeding.logged();
    logged.retain(|line| !line.starts_with("accept"));
    let expected = ["confirm [(1, 1)]", "!a 1", "!a 2", "!b 3", "!a 4", "c 5", "c 7", "d 6", "!b 8", "c 9"];
    assert_eq!(logged, expected);
}

/// Whoever gets what, and however large it is: nothing is lost, mixed up, or out of order.
#[test]
fn each_gets_its_own_in_its_order() {
    let mut random = fastrand::Rng::with_seed(5);
    let tags: Vec<String> =
        (0..40).map(|number| format!("{}{number}", if number % 13 == 5 { "!" } else { "" })).collect();
    let sizes = [0, 1, 16, 16, 16, 100, 1000, 4000, 5000, 30_000, 64_000, 70_000];
    for round in 0..12 {
        let mut feeding = Feeding::new();
        let (consumers, longest) = (1 + random.usize(..tags.len()), 1 + random.usize(..8));
        let mut expected: BTreeMap<String, Vec<u64>> = BTreeMap::new();
        let mut lines = Vec::new();
        for _ in 0..4 {
            let mut messages = Vec::new();
            while messages.len() < 300 {
                let tag = &tags[random.usize(..consumers)][..];
                let largest = if round % 3 == 0 { 7 } else { sizes.len() };
                for _ in 0..1 + random.usize(..longest) {
                    let number = feeding.number + messages.len() as u64 + 1;
                    expected.entry(tag.to_owned()).or_default().push(number);
                    // A message has a method, whatever its size.
                    messages.push((random.u16(1..3), tag, 1 + sizes[random.usize(..largest)]));
                }
            }
            // The same consumers are on the same channels.
            messages.iter_mut().for_each(|message| message.0 = message.1.len() as u16 % 2 + 1);
            feeding.deliver_all(&messages);
            lines.extend(feeding.logged());
        }
        let mut got: BTreeMap<String, Vec<u64>> = BTreeMap::new();
        for line in lines.iter().filter(|line| !line.starts_with("accept")) {
            let (tag, number) = line.split_once(' ').unwrap();
            got.entry(tag.to_owned()).or_default().push(number.parse().unwrap());
        }
        assert_eq!(got, expected);
    }
}

/// More consumers than anything is gathered for at a time, and what is kept of them afterwards.
#[test]
fn however_many_there_are_memory_is_bounded() {
    let mut feeding = Feeding::new();
    let tags: Vec<String> = (0..2 * MOST + 100).map(|number| format!("consumer {number}")).collect();
    let messages: Vec<_> = tags.iter().map(|tag| (1, &tag[..], 10)).collect();
    feeding.deliver_all(&messages);
    assert!(feeding.run.open.len() < MOST);
    let delivered = feeding.logged().into_iter().filter(|line| !line.starts_with("accept")).count();
    assert_eq!(delivered, messages.len());
    assert!(feeding.run.spare.len() <= SPARE && feeding.run.open.capacity() <= MOST / 16);
}
