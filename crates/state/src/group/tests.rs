mod assign;
mod common;
mod histories;
mod membership;
mod model;
mod offsets;
mod records;
