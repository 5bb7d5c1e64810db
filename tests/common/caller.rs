//! Who makes the calls of a test: the thread that runs it or, in the program `in_coroutines`, a coroutine.

/// What a coroutine drops while it unwinds is closed a little later, by somebody else.
pub fn may_wait_while_unwinding() -> bool {
    env!("CARGO_CRATE_NAME") != "in_coroutines"
}

/// Does `work` there, and waits for its end. A panic is passed on.
pub fn call<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    #[cfg(feature = "coroutines")]
    if env!("CARGO_CRATE_NAME") == "in_coroutines" {
        return in_a_coroutine(work);
    }
    work()
}

#[cfg(feature = "coroutines")]
fn in_a_coroutine<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    use std::sync::{Mutex, Once};

    static SET_UP: Once = Once::new();
    SET_UP.call_once(|| {
        // Coroutines run on threads that belong to the first test: what these print is kept with that one's output,
        // and shown only when that one fails.
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if may::coroutine::is_coroutine() {
                super::watchdog::say(&format!("in a coroutine: {info}"));
            }
            usual(info);
        }));
        // The bodies of tests are deep, and block their thread in between; what the library itself needs and
        // does is the subject of tests/coroutines.
        may::config().set_workers(32).set_stack_size(MEGABYTE_IN_WORDS).set_worker_pin(false);
    });
    let result = Mutex::new(None);
    may::coroutine::scope(|scope| {
        may::go!(scope, || *result.lock().unwrap() = Some(work()));
    });
    result.into_inner().unwrap().expect("a result, because no panic came")
}

#[cfg(feature = "coroutines")]
const MEGABYTE_IN_WORDS: usize = (1 << 20) / size_of::<usize>();
