const isNumber = require('is-number');
console.log('seven', isNumber('7'));
