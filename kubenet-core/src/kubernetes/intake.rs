use std::{
    collections::HashMap,
    hash::{BuildHasher, Hash, RandomState},
    marker::PhantomData,
};

use k8s_openapi::{
    api::{core::v1, discovery::v1 as discovery},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
    serde::de::DeserializeOwned,
};
use serde_json::Value;

use super::{Conversion, Converter, Notice, conversion::Problems, endpoint_slice, manifests, meta, service};
use crate::{
    cluster::Change,
    model::{EndpointSlice, InvalidObject, ObjectName, Service},
};

/// Turns what lists and watches of the Kubernetes API deliver into [`Change`]s.
///
/// It needs no runtime and no client: hand it each object as it comes, and its changes to a
/// [`ServiceRouter`](crate::router::ServiceRouter).
///
/// - **The last good state stays.** An object that is refused keeps the state that was good last, until it is
///   mended or deleted. One bad object never hides the rest.
/// - **A complete list deletes** what it does not name. A refused object that it names is not deleted.
/// - An object that becomes somebody else's, such as one that gets the label of another proxy, is removed.
/// - An object that did not change gives no change, and each problem and notice is told once, also when the
///   same objects are listed again.
///
/// ```
/// use k8s_openapi::api::core::v1;
/// use kubenet_core::kubernetes::{Converter, Intake};
///
/// let object: v1::Service = serde_json::from_value(serde_json::json!({
///     "metadata": { "namespace": "demo", "name": "web" },
///     "spec": { "clusterIP": "10.96.0.10", "ports": [{ "port": 80 }] },
/// }))?;
/// let mut intake = Intake::new(Converter::new());
/// assert_eq!(intake.services([&object]).changes.len(), 1);
/// assert!(intake.services([&object]).is_empty());
/// assert_eq!(intake.service_gone("demo", "web").changes.len(), 1);
/// # Ok::<_, Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Intake {
    converter: Converter,
    services: Known<Service>,
    slices: Known<EndpointSlice>,
}

/// What [`Intake`] made of something that was delivered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Taken {
    /// What to hand to the router.
    pub changes: Vec<Change>,
    /// Rules that the objects break, and did not when they were seen before.
    pub problems: Vec<InvalidObject>,
    /// Fields without effect, that were not there when the objects were seen before.
    pub notices: Vec<Notice>,
}

impl Taken {
    /// Whether there is nothing to do and nothing to tell.
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty() && self.problems.is_empty() && self.notices.is_empty()
    }

    /// Adds what was taken after it.
    pub fn append(&mut self, mut later: Taken) {
        self.changes.append(&mut later.changes);
        self.problems.append(&mut later.problems);
        self.notices.append(&mut later.notices);
    }
}

impl Intake {
    /// An intake that knows no object.
    pub fn new(converter: Converter) -> Self {
        Self { converter, services: Known::default(), slices: Known::default() }
    }

    /// A Service was listed, created or changed.
    pub fn service(&mut self, object: &v1::Service) -> Taken {
        self.services.take(&object.metadata, || service::convert(&self.converter, object))
    }

    /// The same with the object as the API sent it. One that does not have the form of a Service is refused like
    /// one that breaks another rule.
    pub fn service_json(&mut self, object: &Value) -> Taken {
        match read(object, "Service", &mut self.services) {
            Ok(Some(typed)) => self.service(&typed),
            Ok(None) => Taken::default(),
            Err(taken) => taken,
        }
    }

    /// A Service was deleted.
    pub fn service_gone(&mut self, namespace: &str, name: &str) -> Taken {
        self.services.remove(&Key::new(namespace, name))
    }

    /// All Services that exist. Those that are not among them were deleted.
    pub fn services<'a>(&mut self, all: impl IntoIterator<Item = &'a v1::Service>) -> Taken {
        self.begin_services();
        let mut taken = Taken::default();
        for object in all {
            taken.append(self.service(object));
        }
        taken.append(self.end_services());
        taken
    }

    /// A list of all Services begins, whose objects come one by one: [`Intake::service`] for each of them,
    /// then [`Intake::end_services`]. A list that breaks off is begun anew.
    pub fn begin_services(&mut self) {
        self.services.begin();
    }

    /// The list that was begun is complete: the Services that it did not name were deleted.
    pub fn end_services(&mut self) -> Taken {
        self.services.end()
    }

    /// A slice was listed, created or changed.
    pub fn endpoint_slice(&mut self, object: &discovery::EndpointSlice) -> Taken {
        self.slices.take(&object.metadata, || endpoint_slice::convert(object))
    }

    /// The same with the object as the API sent it, as with [`Intake::service_json`].
    pub fn endpoint_slice_json(&mut self, object: &Value) -> Taken {
        match read(object, "EndpointSlice", &mut self.slices) {
            Ok(Some(typed)) => self.endpoint_slice(&typed),
            Ok(None) => Taken::default(),
            Err(taken) => taken,
        }
    }

    /// A slice was deleted.
    pub fn endpoint_slice_gone(&mut self, namespace: &str, name: &str) -> Taken {
        self.slices.remove(&Key::new(namespace, name))
    }

    /// All slices that exist. Those that are not among them were deleted.
    pub fn endpoint_slices<'a>(
        &mut self,
        all: impl IntoIterator<Item = &'a discovery::EndpointSlice>,
    ) -> Taken {
        self.begin_endpoint_slices();
        let mut taken = Taken::default();
        for object in all {
            taken.append(self.endpoint_slice(object));
        }
        taken.append(self.end_endpoint_slices());
        taken
    }

    /// A list of all slices begins, as with [`Intake::begin_services`].
    pub fn begin_endpoint_slices(&mut self) {
        self.slices.begin();
    }

    /// The list that was begun is complete: the slices that it did not name were deleted.
    pub fn end_endpoint_slices(&mut self) -> Taken {
        self.slices.end()
    }

    /// Whether both kinds were listed once: time to call
    /// [`ServiceRouter::synced`](crate::router::ServiceRouter::synced) ([K0]).
    ///
    /// [K0]: crate::router::ServiceRouter
    pub fn is_complete(&self) -> bool {
        self.services.complete && self.slices.complete
    }

    /// The rules that the objects of now break, Services first, in no other order.
    pub fn problems(&self) -> impl Iterator<Item = &InvalidObject> {
        self.services.problems().chain(self.slices.problems())
    }

    /// Number of objects that are refused now.
    pub fn refused(&self) -> usize {
        self.services.refused() + self.slices.refused()
    }
}

/// A kind of object that is declared to the router.
trait Declared: Hash + Into<Change> {
    fn name(&self) -> &ObjectName;
    fn removal(name: ObjectName) -> Change;
}

impl Declared for Service {
    fn name(&self) -> &ObjectName {
        self.name()
    }

    fn removal(name: ObjectName) -> Change {
        Change::RemoveService(name)
    }
}

impl Declared for EndpointSlice {
    fn name(&self) -> &ObjectName {
        self.name()
    }

    fn removal(name: ObjectName) -> Change {
        Change::RemoveEndpointSlice(name)
    }
}

/// Namespace and name as written. Those of a refused object may be anything.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Key(Box<str>, Box<str>);

impl Key {
    fn new(namespace: &str, name: &str) -> Self {
        let namespace = if namespace.is_empty() { "default" } else { namespace };
        Self(namespace.into(), name.into())
    }
}

/// All objects of one kind that are ours.
#[derive(Debug)]
struct Known<T> {
    objects: HashMap<Key, Object>,
    hasher: RandomState,
    kind: PhantomData<T>,
    /// The number of the current list, or of the last one.
    list: u64,
    /// Whether a list was complete.
    complete: bool,
}

#[derive(Debug, Default)]
struct Object {
    /// The last good state. `None` where it was never good.
    declared: Option<Fingerprint>,
    /// `resourceVersion` of what was seen last, good or bad.
    version: Option<Box<str>>,
    /// Why that was refused.
    problems: Vec<InvalidObject>,
    notices: Vec<Notice>,
    /// The list that named it last.
    list: u64,
}

/// What is remembered of an object that the router has: a copy would take as much memory again. Of two states
/// that differ, one in 2^64 pairs looks equal.
#[derive(Debug, PartialEq)]
struct Fingerprint {
    name: ObjectName,
    hash: u64,
}

impl<T> Default for Known<T> {
    fn default() -> Self {
        Self {
            objects: HashMap::new(),
            hasher: RandomState::new(),
            kind: PhantomData,
            list: 0,
            complete: false,
        }
    }
}

impl<T: Declared> Known<T> {
    fn take(
        &mut self,
        metadata: &ObjectMeta,
        convert: impl FnOnce() -> Result<Conversion<T>, Problems>,
    ) -> Taken {
        let (namespace, name) = meta::names(metadata);
        let key = Key::new(namespace, name);
        let version = metadata.resource_version.as_deref().filter(|version| !version.is_empty());
        if self.has_seen(&key, version) {
            return Taken::default();
        }
        let converted = match convert() {
            Ok(Conversion::NotOurs(_)) => return self.remove(&key),
            Ok(Conversion::Ours(object, notices)) => Ok((object, notices)),
            Err(problems) => Err(problems),
        };
        let fingerprint =
            |object: &T| Fingerprint { name: object.name().clone(), hash: self.hasher.hash_one(object) };
        let known = self.objects.entry(key).or_default();
        known.list = self.list;
        known.version = version.map(Into::into);
        let mut taken = Taken::default();
        match converted {
            Ok((object, notices)) => {
                let declared = Some(fingerprint(&object));
                if known.declared != declared {
                    known.declared = declared;
                    taken.changes.push(object.into());
                }
                known.problems.clear();
                taken.notices = renew(&mut known.notices, notices);
            }
            // The notices are those of the last good state, as it is.
            Err(problems) => {
                taken.problems = renew(&mut known.problems, problems.into_iter().collect());
            }
        }
        taken
    }

    /// Whether this very version was seen already. Then it is named by the current list, too.
    fn has_seen(&mut self, key: &Key, version: Option<&str>) -> bool {
        let list = self.list;
        match self.objects.get_mut(key) {
            Some(known) if version.is_some() && known.version.as_deref() == version => {
                known.list = list;
                true
            }
            _ => false,
        }
    }

    fn remove(&mut self, key: &Key) -> Taken {
        let mut taken = Taken::default();
        if let Some(object) = self.objects.remove(key) {
            taken.changes.extend(object.removal::<T>());
        }
        taken
    }

    fn begin(&mut self) {
        self.list += 1;
    }

    fn end(&mut self) -> Taken {
        self.complete = true;
        let gone = self.objects.extract_if(|_, object| object.list != self.list);
        Taken { changes: gone.filter_map(|(_, object)| object.removal::<T>()).collect(), ..Taken::default() }
    }

    fn problems(&self) -> impl Iterator<Item = &InvalidObject> {
        self.objects.values().flat_map(|object| &object.problems)
    }

    fn refused(&self) -> usize {
        self.objects.values().filter(|object| !object.problems.is_empty()).count()
    }
}

impl Object {
    fn removal<T: Declared>(self) -> Option<Change> {
        self.declared.map(|declared| T::removal(declared.name))
    }
}

/// Reads an object as its type of the API. `None` when this version of it was seen already; what was taken
/// when it is refused.
fn read<K: DeserializeOwned, T: Declared>(
    object: &Value,
    kind: &str,
    known: &mut Known<T>,
) -> Result<Option<K>, Taken> {
    let text = |field: &str| object.get("metadata")?.get(field)?.as_str().map(ToOwned::to_owned);
    let metadata = ObjectMeta {
        namespace: text("namespace"),
        name: text("name"),
        resource_version: text("resourceVersion"),
        ..ObjectMeta::default()
    };
    let (namespace, name) = meta::names(&metadata);
    if known.has_seen(&Key::new(namespace, name), metadata.resource_version.as_deref()) {
        return Ok(None);
    }
    serde_path_to_error::deserialize(object).map(Some).map_err(|error| {
        let path = error.path().to_string();
        let field = if path == "." { "" } else { &path };
        let rule = manifests::type_rule(&error.into_inner().to_string());
        let problem = InvalidObject::new(meta::title(kind, namespace, name), field, "", rule);
        known.take(&metadata, || Err(problem.into()))
    })
}

/// Replaces what is known, and returns what is new about it.
fn renew<M: Clone + PartialEq>(known: &mut Vec<M>, now: Vec<M>) -> Vec<M> {
    let new = now.iter().filter(|item| !known.contains(item)).cloned().collect();
    *known = now;
    new
}
