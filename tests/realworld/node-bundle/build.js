const fs = require('fs');
const isArray = require('isarray');
fs.mkdirSync('dist');
fs.writeFileSync('dist/index.html', `<p>${fs.readFileSync('page.txt', 'utf8').trim()} ${isArray([])}</p>\n`);
