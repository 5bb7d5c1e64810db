//! Exactly one outcome per publish, and the right one: what the broker of [`model`](super::model) did to each
//! delivery number is compared with what the publishers were told.

use std::{collections::HashMap, sync::Barrier, thread, time::Duration};

use fastrand::Rng;
use leveret::{Channel, Confirm, Connection, Error, Outcome, Publish, Result};

use super::common::{
    peer::*,
    watchdog::{LIMIT, Watchdog, test_name},
};
use super::model::{ENDINGS, Ending, FRAME_MAX, Record, Verdict, id, serve};

const THREADS: u64 = 16;
const PUBLISHES: u64 = 20;
const SEEDS: u64 = 70;

/// How a message is published.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Confirmed,
    Deferred,
    DeferredAndDropped,
    Plain,
}

/// What a publisher was told of one publish.
#[derive(Debug)]
enum Told {
    NotSent(Error),
    /// Nothing: `wait_for_confirms` will tell.
    Nothing,
    Verdict {
        verdict: Verdict,
        number: Option<u64>,
    },
}

#[derive(Debug)]
struct Report {
    id: u64,
    told: Told,
}

fn verdict(published: u64, outcome: Outcome) -> Verdict {
    match outcome {
        Outcome::Acked => Verdict::Acked,
        Outcome::Nacked => Verdict::Nacked,
        Outcome::Returned(returned) => {
            assert_eq!(id(&returned.body), published, "the return of another message");
            Verdict::Returned
        }
        Outcome::Unknown(error) => {
            assert!(!matches!(error, Error::Timeout(_) | Error::Invalid(_)), "{error:?}");
            Verdict::Unknown
        }
    }
}

fn body(random: &mut Rng, id: u64) -> Vec<u8> {
    let frame = FRAME_MAX as usize - 8;
    let length = match random.u8(..20) {
        0 => random.usize(32 * 1024..100_000),
        1 => random.usize(frame - 1..=frame + 1),
        2 => random.usize(frame..30_000),
        _ => random.usize(8..200),
    };
    let mut body = id.to_be_bytes().to_vec();
    body.resize(length, id as u8);
    body
}

/// Publishes in all forms, and waits for all handles but those it drops.
fn publish(channel: &Channel, thread: u64, seed: u64) -> Vec<Report> {
    let mut random = Rng::with_seed(seed * 1000 + thread);
    let (mut reports, mut handles) = (Vec::new(), Vec::new());
    for number in 0..PUBLISHES {
        let id = thread * 1000 + number;
        let body = body(&mut random, id);
        let message = Publish::new(&body).mandatory(random.bool());
        let form = [Form::Confirmed, Form::Deferred, Form::DeferredAndDropped, Form::Plain];
        let form = form[random.usize(..form.len())];
        let told = match form {
            Form::Confirmed => {
                // Not sent is not told apart from lost on the way.
                let outcome = match channel.publish_confirmed("exchange", "key", message) {
                    Ok(()) => Outcome::Acked,
                    Err(Error::Nacked) => Outcome::Nacked,
                    Err(Error::Returned(returned)) => Outcome::Returned(returned),
                    Err(error) => Outcome::Unknown(error),
                };
                Told::Verdict { verdict: verdict(id, outcome), number: None }
            }
            Form::Plain => match channel.basic_publish("exchange", "key", message) {
                Ok(()) => Told::Nothing,
                Err(error) => Told::NotSent(error),
            },
            Form::Deferred | Form::DeferredAndDropped => {
                match channel.deferred().basic_publish("exchange", "key", message) {
                    Ok(handle) if form == Form::Deferred => {
                        handles.push((id, handle));
                        Told::Nothing
                    }
                    Ok(_) => Told::Nothing,
                    Err(error) => Told::NotSent(error),
                }
            }
        };
        if form != Form::Deferred || matches!(told, Told::NotSent(_)) {
            reports.push(Report { id, told });
        }
        if random.u8(..5) == 0 && !handles.is_empty() {
            let (id, handle) = handles.swap_remove(random.usize(..handles.len()));
            reports.push(resolve(&mut random, id, handle));
        }
    }
    reports.extend(handles.into_iter().map(|(id, handle)| resolve(&mut random, id, handle)));
    reports
}

fn resolve(random: &mut Rng, id: u64, mut handle: Confirm) -> Report {
    let number = Some(handle.sequence_number());
    let early = match random.u8(..3) {
        0 => handle.try_wait(),
        1 => handle.wait_timeout(Duration::from_millis(1)),
        _ => None,
    };
    let verdict = match early {
        Some(outcome) => {
            let early = verdict(id, outcome);
            assert_eq!(early, verdict_of_wait(id, handle), "told twice, and differently");
            early
        }
        None => verdict_of_wait(id, handle),
    };
    Report { id, told: Told::Verdict { verdict, number } }
}

fn verdict_of_wait(id: u64, handle: Confirm) -> Verdict {
    verdict(id, handle.wait())
}

/// Compares what was told with what was done, given that the client may not have seen the end of it.
struct Comparison<'r> {
    record: &'r Record,
    ending: Ending,
    last_seen: Option<usize>,
    first_not_seen: usize,
}

impl Comparison<'_> {
    fn publish(&mut self, place: usize, told: Verdict) {
        let (action, right) = self.record.received[place].verdict();
        if told == Verdict::Unknown {
            assert!(self.record.ended, "lost without a loss: number {}", place + 1);
            self.first_not_seen = self.first_not_seen.min(action);
        } else {
            assert_eq!(told, right, "number {}", place + 1);
            self.last_seen = self.last_seen.max(Some(action));
        }
    }

    /// What the broker sent is seen up to some point, and nothing of it after that.
    fn finish(self) {
        assert!(self.last_seen.is_none_or(|last| last < self.first_not_seen), "a gap");
        if self.ending.is_orderly() {
            assert_eq!(self.first_not_seen, usize::MAX, "everything that was sent arrived");
        }
    }
}

fn compare(record: &Record, ending: Ending, reports: &[Report], listed: &[(u64, Error)]) {
    let places = record.places();
    let mut listed: HashMap<u64, Verdict> = listed
        .iter()
        .map(|(number, error)| {
            let verdict = match error {
                Error::Nacked => Verdict::Nacked,
                Error::Returned(_) => Verdict::Returned,
                _ => Verdict::Unknown,
            };
            (*number, verdict)
        })
        .collect();
    let mut comparison = Comparison { record, ending, last_seen: None, first_not_seen: usize::MAX };
    // Accepted, and lost on their way to the broker.
    let mut lost = 0;
    for report in reports {
        match (&report.told, places.get(&report.id)) {
            (Told::NotSent(error), Some(_)) => panic!("sent all the same: {report:?} ({error})"),
            (Told::NotSent(error), None) => {
                assert!(record.ended && (error.is_hard() || error.is_soft()), "{report:?}");
            }
            (Told::Verdict { verdict, number }, Some(&place)) => {
                assert!(number.is_none_or(|number| number == place as u64 + 1), "{report:?}");
                comparison.publish(place, *verdict);
            }
            (Told::Verdict { verdict, .. }, None) => {
                assert_eq!(*verdict, Verdict::Unknown, "it never arrived: {report:?}");
            }
            (Told::Nothing, Some(&place)) => {
                comparison.publish(place, listed.remove(&(place as u64 + 1)).unwrap_or(Verdict::Acked));
            }
            (Told::Nothing, None) => lost += 1,
        }
    }
    comparison.finish();
    // What is left of the list never arrived; a large message that was given up halfway has a number, too.
    assert!(listed.keys().all(|number| *number > record.received.len() as u64), "{listed:?}");
    assert!(listed.values().all(|verdict| *verdict == Verdict::Unknown), "{listed:?}");
    assert!(listed.len() >= lost, "{lost} were lost, and only {} are listed", listed.len());
}

fn run(seed: u64, ending: Ending) {
    let mut random = Rng::with_seed(seed);
    let actions = random.usize(1..(THREADS * PUBLISHES) as usize * 2 / 3);
    let peer = Peer::run(move |peer| {
        peer.handshake_with(Tune { frame_max: FRAME_MAX, ..Tune::default() });
        peer.open_channel(1);
        peer.expect(1, CONFIRM_SELECT);
        peer.send(1, CONFIRM_SELECT_OK, &[]);
        serve(peer, seed, ending, actions)
    });
    let window = if random.bool() { 0 } else { random.usize(1..40) };
    let config = peer.config().max_outstanding_confirms(window).confirm_timeout(LIMIT);
    let connection = Connection::open(config.publish_timeout(LIMIT)).unwrap();
    let channel = connection.channel().unwrap();
    channel.confirm_select().unwrap();
    let start = Barrier::new(THREADS as usize);
    let publisher = |thread| {
        start.wait();
        publish(&channel, thread, seed)
    };
    let reports: Vec<Report> = thread::scope(|scope| {
        let publisher = &publisher;
        let threads: Vec<_> = (0..THREADS).map(|thread| scope.spawn(move || publisher(thread))).collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(reports.len() as u64, THREADS * PUBLISHES);
    let listed = listed(channel.wait_for_confirms(LIMIT));
    assert_eq!(channel.unconfirmed(), 0);
    let _ = connection.close();
    compare(&peer.finish(), ending, &reports, &listed);
}

fn listed(result: Result<()>) -> Vec<(u64, Error)> {
    match result {
        Ok(()) => Vec::new(),
        Err(Error::Unconfirmed(unconfirmed)) => {
            assert_eq!(unconfirmed.more, 0);
            unconfirmed.failures.clone()
        }
        Err(error) => panic!("{error:?}"),
    }
}

/// Rows 60, 61, 62, 63: 16 threads publish in every form, messages small and larger than a frame, while the
/// broker acks and nacks in any order, one or many, returns some before it settles them, and ends the
/// connection when it likes. Every publish has one outcome, and it is what the broker did.
#[test]
fn every_publish_has_exactly_one_outcome_and_it_is_the_right_one() {
    for ending in ENDINGS {
        let _watchdog = Watchdog::new(&format!("{} {ending:?}", test_name()), LIMIT);
        for round in 0..SEEDS / ENDINGS.len() as u64 {
            let seed = round * 7 + ending as u64;
            eprintln!("seed {seed}, {ending:?}");
            run(seed, ending);
        }
    }
}

/// Rows 33, 61: nothing that is published while the broker closes the channel is forgotten: what is accepted is
/// acked or listed.
#[test]
fn what_is_published_while_the_channel_is_closed_is_listed() {
    let _watchdog = Watchdog::new(&test_name(), LIMIT);
    for round in 0..200 {
        let peer = Peer::run(move |peer| {
            peer.handshake();
            peer.open_channel(1);
            peer.expect(1, CONFIRM_SELECT);
            peer.send(1, CONFIRM_SELECT_OK, &[]);
            let acked = round % 20;
            for number in 1..=acked {
                peer.expect_publish(1);
                peer.send(1, ACK, args![number, 0]);
            }
            peer.send(1, CHANNEL_CLOSE, args![404, "NOT_FOUND", 60, 40]);
            peer.until(1, CHANNEL_CLOSE_OK);
            peer.close();
            acked
        });
        let connection = Connection::open(peer.config()).unwrap();
        let channel = connection.channel().unwrap();
        channel.confirm_select().unwrap();
        let accepted: u64 = thread::scope(|scope| {
            let publisher = || {
                let mut accepted = 0;
                while channel.basic_publish("", "key", "message").is_ok() {
                    accepted += 1;
                }
                accepted
            };
            let threads: Vec<_> = (0..3).map(|_| scope.spawn(publisher)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        let (listed, more) = match channel.wait_for_confirms(LIMIT) {
            Ok(()) => (Vec::new(), 0),
            Err(Error::Unconfirmed(unconfirmed)) => (unconfirmed.failures.clone(), unconfirmed.more),
            Err(error) => panic!("{error:?}"),
        };
        assert!(listed.iter().all(|(_, error)| error.is_soft()), "{listed:?}");
        connection.close().unwrap();
        assert_eq!(accepted, peer.finish() + listed.len() as u64 + more, "round {round}");
    }
}
