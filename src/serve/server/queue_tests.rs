//! The queue alone: its bound, its order, who is refused and when.

use super::*;

const ALONE: Batching = Batching { most: 1, wait: Duration::ZERO };
/// Longer than any test: whoever waits that long waits for something else.
const EVER: Duration = Duration::from_secs(600);

fn any_time() -> Patience {
    Patience { since: Instant::now(), limit: None }
}

fn over() -> Patience {
    Patience { since: Instant::now(), limit: Some(Duration::ZERO) }
}

fn queue(bound: usize, clients: usize) -> Arc<Queue<u32>> {
    let queue = Arc::new(Queue::new(bound));
    (0..clients).for_each(|_| queue.enter());
    queue
}

fn taken(queue: &Queue<u32>, batching: Batching) -> Vec<u32> {
    let same_parity = |first: &u32, other: &u32| first % 2 == other % 2;
    queue.take(batching, same_parity).unwrap_or_default().iter().map(|job| job.ready).collect()
}

#[test]
fn first_come_first_served() {
    let queue = queue(8, 3);
    let _kept: Vec<_> = [5, 6, 7].map(|ready| queue.push(ready, any_time()).ok()).into();
    assert_eq!([taken(&queue, ALONE), taken(&queue, ALONE), taken(&queue, ALONE)], [[5], [6], [7]]);
}

#[test]
fn one_more_than_the_bound_is_busy() {
    let queue = queue(2, 3);
    let one = queue.push(1, any_time());
    let _two = queue.push(2, any_time());
    assert_eq!(queue.push(3, any_time()).err().map(|refusal| refusal.kind), Some(Kind::Busy));
    drop(one);
    assert!(queue.push(3, any_time()).is_ok(), "a place that was given up is free");
}

#[test]
fn whoever_is_late_hears_of_it_and_is_not_taken() {
    let queue = queue(8, 2);
    assert_eq!(queue.push(1, over()).err().map(|refusal| refusal.kind), Some(Kind::Late));
    let soon = Patience { since: Instant::now(), limit: Some(Duration::from_millis(1)) };
    // On a machine so busy that it is over before it is in, it is refused at once; that is the same answer.
    let pushed = queue.push(2, soon);
    let _next = queue.push(3, any_time());
    while !soon.over(Instant::now()) {
        std::thread::yield_now();
    }
    assert_eq!(taken(&queue, ALONE), [3]);
    let kind = match pushed {
        Ok((_ticket, mut done)) => done.try_recv().expect("it was told").answer.expect_err("it was late").kind,
        Err(refusal) => refusal.kind,
    };
    assert_eq!(kind, Kind::Late);
}

#[test]
fn whoever_is_gone_is_not_taken() {
    let queue = queue(8, 2);
    let gone = queue.push(1, any_time());
    let _stays = queue.push(2, any_time());
    drop(gone);
    assert_eq!((taken(&queue, ALONE), queue.len()), (vec![2], 0));
}

#[test]
fn a_place_is_left_once() {
    let queue = queue(8, 1);
    let (ticket, _done) = queue.push(1, any_time()).expect("there is room");
    assert!(ticket.withdraw());
    assert!(!ticket.withdraw());
}

#[test]
fn those_that_go_together_are_taken_together_and_the_others_keep_their_places() {
    let queue = queue(8, 5);
    let _kept: Vec<_> = [1, 2, 3, 4, 5].map(|ready| queue.push(ready, any_time()).ok()).into();
    let two = Batching { most: 2, wait: EVER };
    assert_eq!(taken(&queue, two), [1, 3], "no more than two");
    (0..2).for_each(|_| queue.leave());
    assert_eq!(taken(&queue, two), [2, 4]);
    (0..2).for_each(|_| queue.leave());
    assert_eq!(taken(&queue, two), [5], "nobody is left to wait for");
}

#[test]
fn the_first_waits_for_others_until_all_are_there() {
    let queue = queue(8, 2);
    let _first = queue.push(1, any_time());
    let taker = std::thread::spawn({
        let queue = Arc::clone(&queue);
        move || taken(&queue, Batching { most: 4, wait: EVER })
    });
    let _second = queue.push(3, any_time());
    assert_eq!(taker.join().ok(), Some(vec![1, 3]));
}

#[test]
fn the_first_waits_no_longer_than_it_may() {
    let queue = queue(8, 2);
    let _first = queue.push(1, any_time());
    assert_eq!(taken(&queue, Batching { most: 4, wait: Duration::from_millis(1) }), [1]);
}

#[test]
fn a_closed_queue_serves_what_waits_and_takes_nobody() {
    let queue = queue(8, 3);
    let _waits = queue.push(1, any_time());
    queue.close();
    assert_eq!(queue.push(2, any_time()).err().map(|refusal| refusal.kind), Some(Kind::Ending));
    // Nobody more can come, so it does not wait for others.
    assert_eq!(taken(&queue, Batching { most: 4, wait: EVER }), [1]);
    assert!(queue.take(ALONE, |_, _| false).is_none());
}

#[test]
fn a_cleared_queue_tells_everybody() {
    let queue = queue(8, 1);
    let (_ticket, mut done) = queue.push(1, any_time()).expect("there is room");
    queue.clear();
    let done = done.try_recv().expect("it was told");
    assert_eq!(done.answer.expect_err("it was refused").kind, Kind::Ending);
    assert!(queue.take(ALONE, |_, _| false).is_none());
}

#[test]
fn of_two_limits_the_shorter_holds() {
    let limits = [(None, None, None), (Some(2), None, Some(2)), (None, Some(3), Some(3)), (Some(5), Some(4), Some(4))];
    for (ours, theirs, both) in limits {
        let patience = Patience { since: Instant::now(), limit: ours.map(Duration::from_secs) };
        assert_eq!(patience.and(theirs.map(Duration::from_secs)).limit, both.map(Duration::from_secs));
    }
    let longest = Patience { since: Instant::now(), limit: Some(Duration::MAX) };
    assert!(!longest.over(Instant::now()), "a limit beyond all clocks is none");
}
