//! Declaring, deleting and binding exchanges.

use super::{
    Emulate, ExchangeOptions, Name, Refusal,
    arguments::{check_equivalence, inequivalent},
    exchange::{Destination, Exchange, Kind},
    headers,
    message::sorted,
    values::type_name,
    vhost::Vhost,
};
use crate::protocol::value::{FieldTable, FieldValue};

type Result<T> = std::result::Result<T, Refusal>;

/// RabbitMQ takes line ends out of the names of what is declared or bound.
pub(super) fn stripped(name: &[u8]) -> Name {
    if name.iter().any(|byte| matches!(byte, b'\r' | b'\n')) {
        let kept: Vec<_> = name.iter().copied().filter(|byte| !matches!(byte, b'\r' | b'\n')).collect();
        return Name::from(&*kept);
    }
    name.into()
}

/// Names that begin with `amq.` are the broker's own. `kind` is `exchange` or `queue`.
pub(super) fn check_name(kind: &str, name: &Name) -> Result<()> {
    if name.starts_with(b"amq.") {
        return Err(Refusal::access_refused(format!(
            "{kind} name '{name}' contains reserved prefix 'amq.*'"
        )));
    }
    Ok(())
}

fn check_not_default(name: &Name) -> Result<()> {
    if name.is_empty() {
        return Err(Refusal::access_refused("operation not permitted on the default exchange"));
    }
    Ok(())
}

impl Vhost {
    pub(crate) fn declare_exchange(&mut self, name: &[u8], options: &ExchangeOptions) -> Result<()> {
        let Some(kind) = Kind::from_name(&options.kind) else {
            let problem = if options.kind.is_empty() { "invalid" } else { "unknown" };
            let text = format!("{problem} exchange type '{}'", options.kind);
            return Err(match self.emulate() {
                Emulate::RabbitMq3 => Refusal::command_invalid(text),
                Emulate::RabbitMq4 => Refusal::precondition(text),
            });
        };
        let name = stripped(name);
        check_not_default(&name)?;
        if let Some(existing) = self.exchanges.get(&name) {
            return self.check_same_exchange(&name, existing, kind, options);
        }
        check_name("exchange", &name)?;
        match options.arguments.get("alternate-exchange") {
            None | Some(FieldValue::LongString(_)) => {}
            Some(other) => {
                return Err(Refusal::precondition(format!(
                    "invalid type '{}' for arg 'alternate-exchange' in {}",
                    type_name(other),
                    self.exchange_text(&name)
                )));
            }
        }
        let mut exchange = Exchange::new(kind);
        exchange.durable = options.durable;
        exchange.auto_delete = options.auto_delete;
        exchange.internal = options.internal;
        exchange.arguments = options.arguments.clone();
        self.exchanges.insert(name, exchange);
        Ok(())
    }

    fn check_same_exchange(
        &self,
        name: &Name,
        existing: &Exchange,
        kind: Kind,
        options: &ExchangeOptions,
    ) -> Result<()> {
        let what = self.exchange_text(name);
        let compared = [
            ("type", kind.name().to_owned(), existing.kind.name().to_owned()),
            ("durable", options.durable.to_string(), existing.durable.to_string()),
            ("auto_delete", options.auto_delete.to_string(), existing.auto_delete.to_string()),
            ("internal", options.internal.to_string(), existing.internal.to_string()),
        ];
        for (field, received, current) in compared {
            if received != current {
                return Err(inequivalent(field, &what, &format!("'{received}'"), &format!("'{current}'")));
            }
        }
        check_equivalence(&what, &existing.arguments, &options.arguments, None, self.emulate())
    }

    pub(crate) fn has_exchange(&self, name: &[u8]) -> bool {
        self.exchanges.contains_key(name)
    }

    /// Passive declaration.
    pub(crate) fn check_exchange(&mut self, name: &[u8]) -> Result<()> {
        let name = stripped(name);
        check_not_default(&name)?;
        if self.exchanges.contains_key(&name) { Ok(()) } else { Err(self.no_exchange(&name)) }
    }

    pub(super) fn no_exchange(&self, name: &Name) -> Refusal {
        Refusal::not_found(format!("no {}", self.exchange_text(name)))
    }

    pub(crate) fn delete_exchange(&mut self, name: &[u8], if_unused: bool) -> Result<()> {
        let name = stripped(name);
        check_not_default(&name)?;
        if name.starts_with(b"amq.") {
            let text = self.exchange_text(&name);
            return Err(Refusal::access_refused(format!("deletion of system {text} not allowed")));
        }
        let Some(exchange) = self.exchanges.get(&name) else { return Ok(()) };
        if if_unused && exchange.has_bindings() {
            return Err(Refusal::precondition(format!("{} in use", self.exchange_text(&name))));
        }
        self.remove_exchange(&name);
        self.unbind_destination(&Destination::Exchange(name));
        Ok(())
    }

    pub(crate) fn bind_exchange(
        &mut self,
        destination: &[u8],
        source: &[u8],
        routing_key: &[u8],
        arguments: FieldTable,
    ) -> Result<()> {
        let (source, destination) = (stripped(source), stripped(destination));
        check_not_default(&destination)?;
        check_not_default(&source)?;
        for name in [&source, &destination] {
            if !self.exchanges.contains_key(name) {
                return Err(self.no_exchange(name));
            }
        }
        self.bind(&source, Destination::Exchange(destination), routing_key, arguments)
    }

    pub(crate) fn unbind_exchange(
        &mut self,
        destination: &[u8],
        source: &[u8],
        routing_key: &[u8],
        arguments: &FieldTable,
    ) -> Result<()> {
        let (source, destination) = (stripped(source), stripped(destination));
        check_not_default(&destination)?;
        check_not_default(&source)?;
        self.unbind(&source, &Destination::Exchange(destination), routing_key, arguments);
        Ok(())
    }

    /// Both ends exist.
    pub(super) fn bind(
        &mut self,
        source: &Name,
        destination: Destination,
        routing_key: &[u8],
        arguments: FieldTable,
    ) -> Result<()> {
        let Some(exchange) = self.exchanges.get_mut(source) else { return Ok(()) };
        if exchange.kind == Kind::Headers {
            headers::check_binding(&arguments)?;
        }
        if exchange.bind(destination.clone(), routing_key.into(), sorted(arguments)) {
            self.sources.entry(destination).or_default().insert(source.clone());
        }
        Ok(())
    }

    /// What is not bound is no error.
    pub(super) fn unbind(
        &mut self,
        source: &Name,
        destination: &Destination,
        routing_key: &[u8],
        arguments: &FieldTable,
    ) {
        let arguments = sorted(arguments.clone());
        let Some(exchange) = self.exchanges.get_mut(source) else { return };
        if exchange.unbind(destination, routing_key, &arguments) {
            if !exchange.leads_to(destination) {
                self.forget_source(destination, source);
            }
            self.delete_unused(vec![source.clone()]);
        }
    }

    /// Removes every binding that leads to something that is gone.
    pub(super) fn unbind_destination(&mut self, destination: &Destination) {
        let sources = self.unbind_from_all(destination);
        self.delete_unused(sources);
    }

    /// Gives the exchanges that had bindings to it.
    fn unbind_from_all(&mut self, destination: &Destination) -> Vec<Name> {
        let sources = self.sources.remove(destination).unwrap_or_default();
        for name in &sources {
            if let Some(exchange) = self.exchanges.get_mut(name) {
                exchange.unbind_all(destination);
            }
        }
        sources.into_iter().collect()
    }

    fn remove_exchange(&mut self, name: &Name) {
        let Some(removed) = self.exchanges.remove(name) else { return };
        for (destination, ..) in removed.bindings() {
            self.forget_source(destination, name);
        }
    }

    fn forget_source(&mut self, destination: &Destination, source: &Name) {
        let Some(sources) = self.sources.get_mut(destination) else { return };
        sources.remove(source);
        if sources.is_empty() {
            self.sources.remove(destination);
        }
    }

    /// Deletes those of the exchanges, which have just lost a binding, that are to go with their last one,
    /// and those that were bound to them, and so on.
    fn delete_unused(&mut self, mut candidates: Vec<Name>) {
        while let Some(name) = candidates.pop() {
            let unused = |exchange: &Exchange| exchange.auto_delete && !exchange.has_bindings();
            if !self.exchanges.get(&name).is_some_and(unused) {
                continue;
            }
            self.remove_exchange(&name);
            candidates.extend(self.unbind_from_all(&Destination::Exchange(name)));
        }
    }

    /// Those that do not survive a restart go.
    pub(super) fn lose_exchanges(&mut self) {
        let lost = self.exchanges.iter().filter(|(_, exchange)| !exchange.durable);
        let lost: Vec<_> = lost.map(|(name, _)| name.clone()).collect();
        lost.iter().for_each(|name| self.remove_exchange(name));
        lost.into_iter().for_each(|name| self.unbind_destination(&Destination::Exchange(name)));
    }
}
