//! kubenet
