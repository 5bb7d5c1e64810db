//! The whole model: what a client would see of it.

mod exchanges;
mod fixture;
mod limits;
mod messages;
mod modes;
mod queues;
mod random;
